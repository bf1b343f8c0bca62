"""Hashes of parts of a mapped file, computed on a thread beside other work.

hashing = Hashing([("weights.bin", view, sha256)])
...                                     # hashlib lets go of the interpreter meanwhile
hashing.wait("weights.bin")             # from here on its content may be used
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from hashlib import sha256

from edge_llm.errors import ArtifactError


class Hashing:
    """Compares parts with the SHA-256 they should have, the smallest first.

    Args:
        parts: name, content and the digest, in hexadecimal, of each.
    """

    def __init__(self, parts: Iterable[tuple[str, memoryview, str]]) -> None:
        self._parts = sorted(parts, key=lambda part: len(part[1]))
        self._done = {name: threading.Event() for name, _, _ in self._parts}
        self._damaged: set[str] = set()
        threading.Thread(target=self._run, name="edge-llm-hashing", daemon=True).start()

    def wait(self, name: str) -> None:
        """Return when a part is known to be whole.

        Raises:
            ArtifactError: it is not.
        """
        self._done[name].wait()
        if name in self._damaged:
            raise ArtifactError(f"{name} is damaged: its SHA-256 is not the manifest's")

    def _run(self) -> None:
        while self._parts:
            name, data, digest = self._parts.pop(0)
            if sha256(data).hexdigest() != digest:
                self._damaged.add(name)
            data.release()  # or it would keep the file mapped
            self._done[name].set()
