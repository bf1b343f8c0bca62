"""On what and with what a benchmark was taken, for its report."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import edge_llm
from benchmarks.speed.workbench import Workbench, run

PEERS = "from importlib.metadata import version; print(version('openvino-genai'))"
FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")


def machine(bench: Workbench) -> Mapping[str, str]:
    """What stands above the tables: the CPU, and versions and build flags of all contenders."""
    program = [bench.llama("native", "llama-server"), "--version"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    llama = (done.stdout + done.stderr).splitlines()
    return {
        "CPU": cpu(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "edge-llm": f"{edge_llm.__version__}, TVM {version('apache-tvm')}",
        "llama.cpp": f"{', '.join(filter(None, llama))}; Release, GGML_NATIVE=ON; "
        "AVX2 alone: GGML_NATIVE=OFF with SSE42, AVX, AVX2, FMA, F16C, BMI2",
        "OpenVINO GenAI": run([bench.peers_python, "-c", PEERS]).strip(),
    }


def cpu() -> str:
    """The CPU as the kernel names it, how many there are, and what of its features matters."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pairs = (line.partition(":")[::2] for line in lines)
    fields = {key.strip(): value.strip() for key, value in pairs}
    flags = fields.get("flags", "").split()
    known = ", ".join(feature for feature in FEATURES if feature in flags)
    name = fields.get("model name", platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} CPUs, {known}"
