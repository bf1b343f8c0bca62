"""Raspberry Pi, and boards with the same CPUs. They need a 64-bit operating system.

Thread counts are estimates, not measurements: four cores share a memory controller that three of
them can saturate while decoding, which leaves one for the application. So is the memory left free:
a system without a desktop, its GPU's share and what it caches for itself take 192 MiB and more.
"""

from __future__ import annotations

from dataclasses import replace

from targets.target import Memory, Target, Threads

_TRIPLE = "aarch64-linux-gnu"
_MIB = 2**20
_GLIBC = "2.31"  # Debian 11 and Raspberry Pi OS of that age

RPI3 = Target(
    name="rpi3",
    description="Raspberry Pi 3: 4x Cortex-A53, no dot product, 1 GB",
    boards=("Raspberry Pi 3 Model B, B+ (1 GB)", "Compute Module 3 (1 GB)"),
    triple=_TRIPLE,
    cpu="cortex-a53",
    attributes=(),
    isa="neon",
    features=("asimd",),
    glibc=_GLIBC,
    threads=Threads(prefill=4, decode=4),
    memory=Memory(ram=1024 * _MIB, free=768 * _MIB),
)

RPI_ZERO2W = replace(
    RPI3,
    name="rpi-zero2w",
    description="Raspberry Pi Zero 2 W: the CPU of rpi3, 512 MB",
    boards=("Raspberry Pi Zero 2 W (512 MB)", "Raspberry Pi 3 Model A+ (512 MB)"),
    memory=Memory(ram=512 * _MIB, free=320 * _MIB),
)

RPI4 = Target(
    name="rpi4",
    description="Raspberry Pi 4: 4x Cortex-A72, no dot product",
    boards=("Raspberry Pi 4 (1-8 GB)", "Raspberry Pi 400 (4 GB)", "Compute Module 4 (1-8 GB)"),
    triple=_TRIPLE,
    cpu="cortex-a72",
    attributes=(),
    isa="neon",
    features=("asimd",),
    glibc=_GLIBC,
    threads=Threads(prefill=4, decode=3),
    memory=Memory(ram=1024 * _MIB, free=768 * _MIB),
)

RPI5 = Target(
    name="rpi5",
    description="Raspberry Pi 5: 4x Cortex-A76 with dot product",
    boards=("Raspberry Pi 5 (2-16 GB)", "Raspberry Pi 500 (8 GB)", "Compute Module 5 (2-16 GB)"),
    triple=_TRIPLE,
    cpu="cortex-a76",
    attributes=(),
    isa="dotprod",
    # asimddp for the kernels; with this CPU LLVM may also use Armv8.1 atomics and rounding
    # multiplies, float16 arithmetic and the acquire loads of Armv8.3.
    features=("asimddp", "asimd", "atomics", "asimdrdm", "fphp", "asimdhp", "lrcpc"),
    glibc=_GLIBC,
    threads=Threads(prefill=4, decode=3),
    memory=Memory(ram=2048 * _MIB, free=1664 * _MIB),
)
