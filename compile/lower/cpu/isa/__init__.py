"""Integer dot products, one file an instruction set, all with the same names.

Each module has
    LANES               int32 lanes of its accumulators
    PREFETCH            bytes ahead that the weights of a single token are asked for; 0 for not
    BLOCK               (tokens, rows) that its registers hold at once in a prefill
    PASS                (tokens in a turn, rows whose weights are loaded) where all tokens of a
                        prefill pass a group's weights, which stay in registers; or None
    GROUPS              of 32 columns in a turn of the loop, where they divide a row's
    COPIES              of a group's offset that stand ready while one token is decoded: 16 where a
                        sum begins with a load, 1 where a broadcast costs no more
    TOGETHER            groups that are quantized at once: 4 where their steps across lanes then are
                        fewer, 1 where they are not
    BYTE_BIAS           what an 8-bit weight is stored with added: 128 where it must be unsigned
    layout              where a tile's weights stand: module ``quads``, ``stacked`` or ``pairs``
    dot(bits, zero, data, parts, tokens) -> sums

``dot`` multiplies one group of 32 columns of a tile: ``data`` is its packed bytes, ``parts`` the
range of LANES-row parts wanted, ``tokens`` the activations of each token. It returns, for each
token and part, the exact sums of ``q·a`` in int32 or float32: 4-bit weights count as ``q - zero``,
8-bit ones are signed.

With a PASS there are also
    load(bits, zero, data, parts) -> weights
    dot_loaded(bits, zero, weights, tokens) -> sums
and a prefill loads weights, unpacks them and takes ``zero`` off once for all tokens.
"""

from __future__ import annotations

from types import MappingProxyType, ModuleType

from compile.lower.cpu.isa import avx2, avx512_vnni, avx_vnni, dotprod, neon

ISAS: MappingProxyType[str, ModuleType] = MappingProxyType(
    {
        "avx2": avx2,
        "avx_vnni": avx_vnni,
        "avx512_vnni": avx512_vnni,
        "neon": neon,
        "dotprod": dotprod,
    }
)
