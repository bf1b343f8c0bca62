"""Which CPU this is, and whether the code in an artifact may run on it.

Checked before any compiled code is loaded: an instruction that the CPU lacks would end the process
with SIGILL and no word.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from edge_llm.errors import TargetError
from edge_llm.manifest import Target

_AT_HWCAP = 16
_AT_HWCAP2 = 26

# Bits of AT_HWCAP and AT_HWCAP2 from 0 on, in the words of /proc/cpuinfo
# (Linux, arch/arm64/include/uapi/asm/hwcap.h).
_HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma "
    "lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
_HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm "
    "svebf16 i8mm bf16"
)

# A 64-bit kernel under a 32-bit system, as on many a Raspberry Pi, calls itself 64-bit.
_AS_32_BIT = {"aarch64": "armv7l", "x86_64": "i686"}

# What to compile for instead, best first: machine, the feature that tells, target. The device has
# no table of targets; tests/test_targets.py holds this against theirs.
_ALTERNATIVES = (
    ("x86_64", "avx512_vnni", "x86-avx512-vnni"),
    ("x86_64", "avx_vnni", "x86-avx-vnni"),
    ("x86_64", "avx2", "x86-64-v3"),
    ("aarch64", "asimddp", "rpi5"),
    ("aarch64", "asimd", "rpi4"),
)


@dataclass(frozen=True)
class Host:
    """The machine that runs this.

    Attributes:
        machine: as uname says it, but 32-bit where Python is: ``x86_64``, ``aarch64``, ``armv7l``.
        features: what the CPU has, as /proc/cpuinfo names it.
        model_name: for people.
        glibc: version of the C library, None where it is another one.
    """

    machine: str
    features: frozenset[str]
    model_name: str
    glibc: str | None


def host() -> Host:
    """Ask the operating system; what it does not say stays empty."""
    machine = os.uname().machine
    if struct.calcsize("P") == 4:
        machine = _AS_32_BIT.get(machine, machine)
    if machine == "aarch64":
        # The kernel's own word to this process: under emulation /proc/cpuinfo is another CPU's.
        features = arm_features(_auxiliary(_AT_HWCAP), _auxiliary(_AT_HWCAP2))
        model_name = _read("/proc/device-tree/model").strip("\0\n")
    else:
        features, model_name = x86_features(_read("/proc/cpuinfo"))
    return Host(machine, features, model_name or f"{machine} CPU", _glibc())


def arm_features(hwcap: int, hwcap2: int) -> frozenset[str]:
    """The names of the bits set in the two words of the auxiliary vector."""
    words = ((_HWCAP, hwcap), (_HWCAP2, hwcap2))
    return frozenset(
        name for names, word in words for bit, name in enumerate(names.split()) if word >> bit & 1
    )


def x86_features(cpuinfo: str) -> tuple[frozenset[str], str]:
    """The flags and the model name that /proc/cpuinfo gives the first CPU."""
    pairs = [line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines()]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    return frozenset(values.get("flags", "").split()), values.get("model name", "")


def check_target(target: Target, host: Host, file: str = "this artifact") -> None:
    """Raise TargetError where code for ``target`` cannot run on ``host``.

    Args:
        target: of the artifact's manifest.
        host: the machine that is to run it.
        file: what to call the artifact in the message.
    """
    compiled = f"{file} was compiled for {target.name} ({target.machine}); this"
    if host.machine != target.machine:
        raise TargetError(f"{compiled} machine is {host.machine}: {_advice(target, host)}")
    if missing := [name for name in target.features if name not in host.features]:
        raise TargetError(f"{compiled} CPU has no {', '.join(missing)}: {_advice(target, host)}")
    if host.glibc is None:
        raise TargetError(f"{compiled} system has no glibc, which it needs")
    if _version(host.glibc) < _version(target.glibc):
        raise TargetError(
            f"{compiled} system has glibc {host.glibc}, older than {target.glibc}: upgrade it"
        )


def _advice(target: Target, host: Host) -> str:
    if host.machine in _AS_32_BIT.values():
        return "install a 64-bit operating system"
    for machine, feature, name in _ALTERNATIVES:
        if name != target.name and host.machine == machine and feature in host.features:
            return f"compile with --target {name}"
    return "no target of edge-llm fits it"


def _auxiliary(kind: int) -> int:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes = [ctypes.c_ulong]
    getauxval.restype = ctypes.c_ulong
    return int(getauxval(kind))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _glibc() -> str | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except ValueError:  # musl does not know the question
        return None
    return version if name == "glibc" else None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
