"""AVX-512 VNNI: vpdpbusd in 512 bits."""

from __future__ import annotations

from functools import partial

from compile.lower.cpu.isa import quads, vnni

LANES = 16
REGISTERS = 32
PREFETCH = 8192
BLOCK = (8, 16)
GROUPS = 1
BYTE_BIAS = vnni.BYTE_BIAS
layout = quads
dot = partial(vnni.dot, LANES)
