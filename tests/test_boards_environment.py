"""The emulated boards are what they claim to be, and what a device installs stays small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boards import CPUS, board_files, installed_project, run_on

MEGABYTE = 1_000_000
DEVICE_LIMIT = 150 * MEGABYTE  # what a device installs besides Python

IMPORTS = """
import json, platform, sys
import numpy, tokenizers, tvm_ffi, jinja2, paho.mqtt.client, aiohttp, click
import edge_llm, firmware_tools
heavy = {"torch", "onnx", "transformers", "tvm"}
absent = []
for name in ("tvm", "torch", "compile", "targets", "gguf", "rich"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        absent.append(name)
print(json.dumps({
    "machine": platform.machine(),
    "loaded": sorted(heavy & set(sys.modules)),
    "absent": absent,
    "edge_llm": edge_llm.__file__,
    "sum": int(numpy.arange(1000, dtype=numpy.int32).sum()),
}))
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
    assert found["absent"] == ["tvm", "torch", "compile", "targets", "gguf", "rich"]
    assert Path(found["edge_llm"]).is_relative_to(installed_project())
    assert found["sum"] == 499_500


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
