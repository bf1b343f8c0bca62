"""AVX-VNNI: vpdpbusd in 256 bits, on CPUs without AVX-512."""

from __future__ import annotations

from functools import partial

from compile.lower.cpu.isa import quads, vnni

LANES = 8
PREFETCH = 8192
BLOCK = (4, 8)
PASS = None
GROUPS = 1
COPIES = 1
TOGETHER = 4
BYTE_BIAS = vnni.BYTE_BIAS
layout = quads
dot = partial(vnni.dot, LANES)
