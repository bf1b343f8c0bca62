"""The emulated boards are what they claim to be, and what a device installs stays small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.board_root import SetupError, arm64_sources, device_pins
from tests.boards import CPUS, board_files, installed_project, run_on

MEGABYTE = 1_000_000
DEVICE_LIMIT = 60 * MEGABYTE  # what a device installs besides Python

IMPORTS = """
import json, platform, sys
import tokenizers, jinja2, paho.mqtt.client, h11, click
import edge_llm, firmware_tools
heavy = {"torch", "onnx", "transformers", "tvm"}
foreign = ["tvm", "tvm_ffi", "torch", "compile", "targets", "gguf", "rich", "numpy"]
absent = []
for name in foreign:
    try:
        __import__(name)
    except ModuleNotFoundError:
        absent.append(name)
print(json.dumps({
    "machine": platform.machine(),
    "loaded": sorted(heavy & set(sys.modules)),
    "foreign": foreign,
    "absent": absent,
    "edge_llm": edge_llm.__file__,
    "encoded": len(tokenizers.Tokenizer(tokenizers.models.BPE()).encode("").ids),
}))
"""

# What `apt-get update --print-uris` prints, shortened.
PRINTED = """
'http://de.archive.vendor.example/ubuntu/dists/noble/InRelease' de.archive_noble_InRelease 0
'http://de.archive.vendor.example/ubuntu/dists/noble/main/binary-arm64/Packages.xz' Packages 0
'http://security.vendor.example/ubuntu/dists/noble-security/InRelease' security_InRelease 0
'https://packages.example.org/apt/dists/cloud-noble/InRelease' cloud_InRelease 0
"""

# AT_HWCAP (16) has ASIMDDP, the dot product, in bit 20.
DOT_PRODUCT = "import ctypes; print(ctypes.CDLL(None).getauxval(16) >> 20 & 1)"


@pytest.mark.board
@pytest.mark.parametrize("cpu", CPUS.values())
def test_a_board_imports_what_a_device_installs_and_nothing_else(cpu: str) -> None:
    done = run_on(cpu, "-c", IMPORTS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"] == "aarch64"
    assert found["loaded"] == []
    assert found["absent"] == found["foreign"]
    assert Path(found["edge_llm"]).is_relative_to(installed_project())
    assert found["encoded"] == 0


@pytest.mark.board
@pytest.mark.parametrize(("target", "expected"), [("rpi3", "0"), ("rpi4", "0"), ("rpi5", "1")])
def test_a_board_has_the_dot_product_exactly_where_the_real_one_has(
    target: str, expected: str
) -> None:
    done = run_on(CPUS[target], "-c", DOT_PRODUCT)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.board
def test_what_a_device_installs_stays_small(record_property: Callable[[str, object], None]) -> None:
    sizes = installed_sizes(board_files().site, installed_project())
    total = sum(sizes.values())
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / MEGABYTE:8.1f} MB  {name}")
    print(f"{total / MEGABYTE:8.1f} MB  in all")
    record_property("device_bytes", total)
    assert total <= DEVICE_LIMIT


def test_ubuntu_keeps_arm64_on_a_host_of_its_own() -> None:
    release = {"ID": "ubuntu", "VERSION_CODENAME": "noble", "PRETTY_NAME": "Ubuntu 24.04 LTS"}
    signed = "[arch=arm64 signed-by=/usr/share/keyrings/ubuntu-archive-keyring.gpg]"
    assert arm64_sources(PRINTED, release) == [
        f"deb {signed} http://ports.vendor.example/ubuntu-ports noble main",
        f"deb {signed} http://ports.vendor.example/ubuntu-ports noble-security main",
    ]


def test_a_system_without_archives_is_told_so() -> None:
    release = {"ID": "debian", "VERSION_CODENAME": "bookworm", "PRETTY_NAME": "Debian 12"}
    with pytest.raises(SetupError, match="no archive of Debian 12"):
        arm64_sources(PRINTED, release)


def test_a_lock_is_read_for_the_boards_python() -> None:
    lock = (
        "# made by a tool\n"
        "filelock==4.1.0 ; python_full_version < '3.11'\n"
        "filelock==4.3.1 ; python_full_version >= '3.11'\n"
        "hf-xet==1.8.0 ; platform_machine == 'aarch64'\n"
        "colorama==0.4.6 ; sys_platform == 'win32'\n"
        "click==8.5.1\n"
    )
    assert device_pins(lock, "3.10") == ["filelock==4.1.0", "hf-xet==1.8.0", "click==8.5.1"]
    assert device_pins(lock, "3.12") == ["filelock==4.3.1", "hf-xet==1.8.0", "click==8.5.1"]


def installed_sizes(*sites: Path) -> dict[str, int]:
    """Bytes of each installed distribution as its RECORD lists them, bytecode caches left out."""
    sizes = {}
    for site in sites:
        for record in site.glob("*.dist-info/RECORD"):
            lines = record.read_text(encoding="utf-8").splitlines()
            files = (site / line.rsplit(",", 2)[0].strip('"') for line in lines)
            name = record.parent.stem
            sizes[name] = sum(
                file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc"
            )
    return sizes
