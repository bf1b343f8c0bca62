"""AVX-512 VNNI: vpdpbusd in 512 bits."""

from __future__ import annotations

from functools import partial

from compile.lower.cpu.isa import quads, vnni
from compile.lower.cpu.isa.tuned import records

LANES = 16
PREFETCH = records()["avx512_vnni"].prefetch
BLOCK = records()["avx512_vnni"].block
PASS = None
GROUPS = 1
COPIES = 1
TOGETHER = 4
BYTE_BIAS = vnni.BYTE_BIAS
layout = quads
dot = partial(vnni.dot, LANES)
