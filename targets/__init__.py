"""The boards that can be compiled for: frozen data, one file a family.

>>> TARGETS["rpi5"].isa
'dotprod'
>>> resolve("native", "aarch64", {"asimd"}).name
'rpi4'
"""

from __future__ import annotations

from collections.abc import Set

from targets.arm import RPI3, RPI4, RPI5, RPI_ZERO2W
from targets.target import Isa, Memory, Target, Threads, UnknownTargetError
from targets.x86 import X86_64_V3, X86_AVX512_VNNI, X86_AVX_VNNI

__all__ = ["TARGETS", "Isa", "Memory", "Target", "Threads", "UnknownTargetError", "resolve"]

TARGETS: dict[str, Target] = {
    "rpi-zero2w": RPI_ZERO2W,
    "rpi3": RPI3,
    "rpi4": RPI4,
    "rpi5": RPI5,
    "x86-64-v3": X86_64_V3,
    "x86-avx-vnni": X86_AVX_VNNI,
    "x86-avx512-vnni": X86_AVX512_VNNI,
}

# Best first. rpi4 before rpi3: the same instructions, scheduled for a CPU more like others.
_NATIVE = (X86_AVX512_VNNI, X86_AVX_VNNI, X86_64_V3, RPI5, RPI4)


def resolve(name: str, machine: str, features: Set[str]) -> Target:
    """The target called ``name``; for ``native`` the best one that this machine can run.

    Args:
        name: a key of ``TARGETS``, or ``native``.
        machine: of the machine that asks, as uname says it; used for ``native`` only.
        features: what its CPU has, as /proc/cpuinfo names it; used for ``native`` only.

    Raises:
        UnknownTargetError: no such name, or no target fits the machine.
    """
    if name in TARGETS:
        return TARGETS[name]
    if name != "native":
        raise UnknownTargetError(f"no target {name}: choose native, {', '.join(TARGETS)}")
    for target in _NATIVE:
        if target.machine == machine and features >= set(target.features):
            return target
    needed = "AVX2 (x86-64-v3) or a 64-bit Arm operating system"
    raise UnknownTargetError(f"no target fits this {machine} machine: it needs {needed}")
