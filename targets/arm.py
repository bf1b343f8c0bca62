"""Raspberry Pi, and boards with the same CPUs. They need a 64-bit operating system.

Thread counts are estimates, not measurements: four cores share a memory controller that three of
them can saturate while decoding, which leaves one for the application.
"""

from __future__ import annotations

from targets.target import Target, Threads

_TRIPLE = "aarch64-linux-gnu"
_GLIBC = "2.31"  # Debian 11 and Raspberry Pi OS of that age

RPI3 = Target(
    name="rpi3",
    description="Raspberry Pi 3 and Zero 2 W: 4x Cortex-A53, no dot product",
    boards=("Raspberry Pi 3 (1 GB)", "Raspberry Pi Zero 2 W (512 MB)"),
    triple=_TRIPLE,
    cpu="cortex-a53",
    attributes=(),
    isa="neon",
    features=("asimd",),
    glibc=_GLIBC,
    threads=Threads(prefill=4, decode=4),
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
)
