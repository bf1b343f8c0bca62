"""What a target is; the targets themselves are in ``arm.py`` and ``x86.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Isa = Literal["avx2", "avx_vnni", "avx512_vnni", "neon", "dotprod"]


class UnknownTargetError(ValueError):
    """A target's name that is not known, or a machine that no target fits."""


@dataclass(frozen=True)
class Threads:
    """Threads to begin with; the owner of a board may set others."""

    prefill: int
    decode: int


@dataclass(frozen=True)
class Memory:
    """Of the smallest board of a name, in bytes."""

    ram: int
    free: int  # what is assumed to be left by the operating system, the GPU and small services


@dataclass(frozen=True)
class Target:
    """A kind of board to compile for: frozen data, nothing else.

    Attributes:
        name: as in ``--target``.
        description: one line for people.
        boards: what it stands for, each with the memory it is sold with.
        triple: of LLVM.
        cpu: LLVM's name of the CPU (``mcpu``), which decides scheduling and what LLVM may use.
        attributes: further LLVM features (``mattr``), each with its sign.
        isa: which kernels are taken; a name in ``compile.lower.cpu.isa``.
        features: what the device must have, as its /proc/cpuinfo names it, so that no instruction
            that ``cpu`` and ``attributes`` allow the compiler is unknown to it. Others follow from
            these on every CPU that exists.
        glibc: the oldest version the code links with.
        threads: None where boards differ too much: then every core.
        memory: None where boards differ too much.
    """

    name: str
    description: str
    boards: tuple[str, ...]
    triple: str
    cpu: str
    attributes: tuple[str, ...]
    isa: Isa
    features: tuple[str, ...]
    glibc: str
    threads: Threads | None
    memory: Memory | None

    @property
    def machine(self) -> str:
        """``x86_64`` or ``aarch64``, as uname says it."""
        return self.triple.split("-")[0]
