"""Reading files by mapping them and writing them so that no half of one is ever seen."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def map_file(path: Path) -> memoryview:
    """A read-only view of a regular file's bytes; nothing is read until it is touched.

    The kernel is asked for huge pages: where its file system has them, as ext4 since Linux 6.16, a
    file that is read from start to end for every token is read a third faster.

    The mapping lasts as long as a view of it does. OSError where the file cannot be opened or is
    not a regular file (a pipe would be waited for, a device has no size).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        if status.st_size == 0:  # mmap refuses it
            return memoryview(b"")
        mapping = mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
        with suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(mapping)
    finally:
        os.close(fd)  # the mapping has a descriptor of its own


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` when the block ends without an error.

    >>> with replacing(Path("settings.toml")) as file:      # doctest: +SKIP
    ...     file.write(b"threads = 4")

    Until then, and after any error or power cut, ``path`` is what it was before.
    """
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    file = open(aside, "xb")  # noqa: SIM115 - closed below, before the rename
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
