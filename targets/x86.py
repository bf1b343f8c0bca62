"""Industrial PCs, mini PCs, servers and the workstation itself."""

from __future__ import annotations

from targets.target import Target

_TRIPLE = "x86_64-linux-gnu"
_GLIBC = "2.28"  # Debian 10, RHEL 8

# x86-64-v3 of the psABI, as far as older levels do not imply it; abm is lzcnt.
_V3 = ("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm")
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

X86_64_V3 = Target(
    name="x86-64-v3",
    description="any x86-64 CPU with AVX2: Intel since 2013, AMD since 2015",
    boards=("Intel Haswell to Comet Lake", "AMD Zen 1 to Zen 3"),
    triple=_TRIPLE,
    cpu="x86-64-v3",
    attributes=(),
    isa="avx2",
    features=_V3,
    glibc=_GLIBC,
    threads=None,
    memory=None,
)

X86_AVX_VNNI = Target(
    name="x86-avx-vnni",
    description="x86-64 CPUs with AVX-VNNI but no AVX-512: Alder Lake and N100 onwards",
    boards=("Intel N95, N100, N305", "Intel Core of the 12th generation and later, Core Ultra"),
    triple=_TRIPLE,
    cpu="x86-64-v3",
    attributes=("+avxvnni",),
    isa="avx_vnni",
    features=("avx_vnni", *_V3),
    glibc=_GLIBC,
    threads=None,
    memory=None,
)

X86_AVX512_VNNI = Target(
    name="x86-avx512-vnni",
    description="x86-64 CPUs with AVX-512 VNNI: Xeon since Cascade Lake, Ice Lake, Zen 4 onwards",
    boards=(
        "Intel Xeon since Cascade Lake",
        "Intel Core of Ice, Tiger and Rocket Lake",
        "AMD Zen 4",
    ),
    triple=_TRIPLE,
    cpu="x86-64-v4",
    attributes=("+avx512vnni",),
    isa="avx512_vnni",
    features=("avx512_vnni", *_V4, *_V3),
    glibc=_GLIBC,
    threads=None,
    memory=None,
)
