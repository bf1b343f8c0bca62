"""Lay out what emulated arm64 boards need in .cache/boards: a Python, and a device's packages.

    .venv/bin/python tests/board_root.py        (needs apt-get; no root, the system stays as it is)

``root``: the distribution's own arm64 python3 with all it depends on, fetched by an apt whose
state and cache are in a temporary folder, and unpacked. ``site``: exactly what a device installs,
requirements-device.lock for that Python on aarch64. What is there already is not fetched again.
tests/boards.py runs programs in it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).resolve().parent.parent
BOARDS = PROJECT / ".cache" / "boards"
LOCK = PROJECT / "requirements-device.lock"
PACKAGES = ("python3", "libstdc++6")  # the library of tokenizers is C++ in part
# Raspberry Pi OS 12 and Ubuntu 22.04 have newer ones: wheels for an older C library run there too.
NEWEST_GLIBC = 28
OLDEST_GLIBC = 17  # manylinux2014, where aarch64 wheels begin
UBUNTU_ARCHIVE = re.compile(r"//[\w.-]*\b(?:archive|security)\.([\w.]+)/ubuntu$")


class SetupError(Exception):
    """What is missing and what to do about it, in one line."""


def main() -> None:
    BOARDS.mkdir(parents=True, exist_ok=True)
    try:
        root = board_root(platform.freedesktop_os_release())
        python = python_version(root)
        site = board_site(python)
    except SetupError as error:
        sys.exit(f"setup: {error}")
    index = {"root": root.name, "python": python, "site": site.name}
    written = BOARDS / "boards.json.new"
    written.write_text(json.dumps(index, indent=2) + "\n")
    written.replace(BOARDS / "boards.json")
    for old in BOARDS.iterdir():
        if old.is_dir() and old not in (root, site):
            shutil.rmtree(old)


def board_root(release: dict[str, str]) -> Path:
    """The unpacked arm64 Python of this machine's distribution, made if it is not there."""
    system = f"{release['ID']}-{release.get('VERSION_CODENAME', 'rolling')}"
    root = BOARDS / f"root-{digest(system, *PACKAGES)}"
    if not root.exists():
        print(f"setup: fetching the arm64 Python of {release['PRETTY_NAME']}")
        with made_aside(root) as new, tempfile.TemporaryDirectory(prefix="edge-llm-apt-") as apt:
            for package in download_arm64(Path(apt), release):
                unpack(package, new)
    return root


def download_arm64(state: Path, release: dict[str, str]) -> list[Path]:
    """Python and all it depends on, as .deb files, by an apt that shares nothing with the host's.

    Args:
        state: an empty folder for the package lists and downloads.
        release: the fields of /etc/os-release.
    """
    if shutil.which("apt-get") is None:
        raise SetupError("the emulated boards come from Debian's or Ubuntu's packages: no apt-get")
    for folder in ("lists/partial", "archives/partial", "sources.list.d", "preferences.d"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    apt = [
        "apt-get", "--yes",
        *("-o", "APT::Architecture=arm64"),
        *("-o", "APT::Architectures=arm64"),
        *("-o", "APT::Sandbox::User=root"),  # the folder belongs to us, not to apt's own user
        *("-o", "APT::Install-Recommends=false"),
        *("-o", "Acquire::Languages=none"),
        *("-o", "Acquire::Retries=3"),
        *("-o", "pkgCacheGen::Essential=none"),  # no dpkg, no init: this is not a system
        *("-o", f"Dir::State={state}"),
        *("-o", f"Dir::State::Lists={state}/lists"),
        *("-o", f"Dir::State::status={state}/status"),
        *("-o", f"Dir::Cache={state}"),
    ]  # fmt: skip
    uris = run([*apt, "-o", "Debug::NoLocking=true", "update", "--print-uris"])
    sources = arm64_sources(uris, release)
    (state / "sources.list").write_text("\n".join(sources) + "\n")
    apt += [
        *("-o", f"Dir::Etc::SourceList={state}/sources.list"),
        *("-o", f"Dir::Etc::SourceParts={state}/sources.list.d"),
        *("-o", f"Dir::Etc::PreferencesParts={state}/preferences.d"),
    ]
    run([*apt, "update"])
    run([*apt, "install", "--download-only", *PACKAGES])
    return sorted((state / "archives").glob("*.deb"))


def arm64_sources(print_uris: str, release: dict[str, str]) -> list[str]:
    """Lines for a sources.list with the distribution's own archives, in arm64.

    Args:
        print_uris: what ``apt-get update --print-uris`` printed.
        release: the fields of /etc/os-release.
    """
    keys = f"/usr/share/keyrings/{release['ID']}-archive-keyring.gpg"
    lines = []
    for uri, suite in re.findall(r"'(\S+)/dists/(\S+)/InRelease'", print_uris):
        series = re.sub(r"-(updates|security)$", "", suite)
        if series not in (release.get("VERSION_CODENAME"), "stable", "testing", "sid", "unstable"):
            continue
        # Ubuntu keeps arm64 on the "ports" host of the same domain.
        uri = UBUNTU_ARCHIVE.sub(r"//ports.\1/ubuntu-ports", uri)
        lines.append(f"deb [arch=arm64 signed-by={keys}] {uri} {suite} main")
    if not lines:
        raise SetupError(f"apt knows no archive of {release['PRETTY_NAME']}: see apt-get update")
    return list(dict.fromkeys(lines))


def unpack(package: Path, root: Path) -> None:
    """Unpack one .deb over ``root``, where /lib is /usr/lib as on today's systems."""
    if not (root / "lib").is_symlink():
        (root / "usr/lib").mkdir(parents=True)
        (root / "lib").symlink_to("usr/lib")
    tar = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    try:
        subprocess.run(
            ["tar", "--extract", "--keep-directory-symlink", "--no-same-owner", "-C", root],
            stdin=tar.stdout,
            check=True,
        )
    finally:
        assert tar.stdout is not None
        tar.stdout.close()
    if tar.wait() != 0:
        raise SetupError(f"{package.name} cannot be unpacked: try again")


def python_version(root: Path) -> str:
    """``3.11``, say: the version of the Python that was unpacked."""
    found = sorted((root / "usr/bin").glob("python3.*[0-9]"))
    if not found:
        raise SetupError(f"{root} holds no Python: remove it and try again")
    return found[-1].name.removeprefix("python")


def board_site(python: str) -> Path:
    """The folder with a device's packages for that Python, made if it is not there."""
    pins = device_pins(LOCK.read_text(), python)
    site = BOARDS / f"site-{digest(python, *pins)}"
    if not site.exists():
        print(f"setup: fetching what a device with Python {python} installs")
        with made_aside(site) as new:
            run([
                *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *("--target", str(new), "--no-deps", "--no-compile", "--only-binary", ":all:"),
                *("--implementation", "cp", "--python-version", python),
                *("--platform", "manylinux2014_aarch64"),
                *(
                    option
                    for minor in range(OLDEST_GLIBC, NEWEST_GLIBC + 1)
                    for option in ("--platform", f"manylinux_2_{minor}_aarch64")
                ),
                *pins,
            ])  # fmt: skip
    return site


def device_pins(lock: str, python: str) -> list[str]:
    """The ``name==version`` of a universal lock that hold for that Python on an aarch64 Linux."""
    board = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "aarch64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    lines = [line for line in lock.splitlines() if line and not line.lstrip().startswith("#")]
    requirements = [Requirement(line) for line in lines]
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(board)
    ]


def digest(*parts: str) -> str:
    """A short name for a folder made from exactly these."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its name once the block is left without error."""
    new = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new)
        raise


def run(command: list[str]) -> str:
    """The command's standard output; a failure is reported with the last line it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise SetupError(f"{Path(command[0]).name} failed: {said}")
    return done.stdout


if __name__ == "__main__":
    main()
