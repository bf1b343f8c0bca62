"""What is measured: each part is a function that prepares its models and says who runs what.

    part = PARTS["decode"](Workbench(Path(".cache/bench")))
    measure(part, rounds=5, report=lambda _done, _contender: None)

A roof is a contender like the others: what the machine allows, in the same unit and round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from benchmarks.speed import engines, servers
from benchmarks.speed.busy import busy_cpus
from benchmarks.speed.engines import Speed
from benchmarks.speed.models import RECIPES, compiled, random_model, smollm2
from benchmarks.speed.roofs import Roofs, work
from benchmarks.speed.rounds import Figure, Part, Ratio, Run
from benchmarks.speed.workbench import Workbench, run

OURS, SAME = "edge-llm", "edge-llm, llama.cpp's weights"
LLAMA, LLAMA_4, OPENVINO = "llama.cpp", "llama.cpp, 4-bit head", "OpenVINO"
ROOF = "roof"
BITS = 4.25  # a weight of ours, by models.RECIPES
THREADS = 2
NEW = 128  # tokens decoded
FEW = 8  # tokens of a prompt or answer that is not what is measured
PROMPTS = (128, 512)
SHORT, LONG = 100, 2000  # tokens in the context, on average
TOGETHER = 4  # sequences


class Engine(Protocol):
    """What :mod:`benchmarks.speed.engines` has of each engine, its model given."""

    def __call__(self, *, prompt: int, new: int, threads: int) -> Speed: ...


def with_threads(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def decode(threads: int, how: str = "") -> Figure:
    return Figure(f"decode{how}, {with_threads(threads)}", "tokens/s")


def prefill(tokens: int) -> Figure:
    return Figure(f"prefill of {tokens}, {with_threads(THREADS)}", "tokens/s")


def against(other: str, figure: Figure, aim: str, who: str = OURS) -> Ratio:
    """A contender beside another, in the same figure."""
    return Ratio(f"{figure.what}: {who} / {other}", (who, figure.what), (other, figure.what), aim)


def within(who: str, above: Figure, below: Figure, aim: str = "") -> Ratio:
    """A contender beside itself."""
    return Ratio(f"{who}: {above.what} / {below.what}", (who, above.what), (who, below.what), aim)


def speeds(engine: Engine, prompts: Collection[int] = (), threads: Collection[int] = ()) -> Run:
    """Decoding with so many threads, and prefills of so many tokens."""

    def measured() -> Mapping[Figure, float]:
        return {
            **{decode(n): engine(prompt=FEW, new=NEW, threads=n).decode for n in threads},
            **{prefill(n): engine(prompt=n, new=FEW, threads=THREADS).prefill for n in prompts},
        }

    return measured


def engines_of(
    bench: Workbench, gguf: Path, smallest: Path, target: str = "native"
) -> dict[str, Engine]:
    """Ours in 4.25 bits beside llama.cpp on a GGUF, each on the other's side too.

    ``gguf`` has the head that llama.cpp's tool gives it, ``smallest`` one in Q4_0. The roof is that
    of the bytes of ours.
    """
    march, build = ("native", "native") if target == "native" else (target, "avx2")
    llama = bench.llama(build, "llama-bench")
    return {
        ROOF: partial(Roofs.build(bench, march).speed, work(gguf, BITS)),
        OURS: partial(engines.edge_llm, compiled(bench, gguf, target, RECIPES)),
        SAME: partial(engines.edge_llm, compiled(bench, gguf, target)),
        LLAMA: partial(engines.llama_cpp, llama, gguf),
        LLAMA_4: partial(engines.llama_cpp, llama, smallest),
    }


def smollm2_engines(bench: Workbench, target: str = "native") -> dict[str, Engine]:
    """OpenVINO too, on the GGUF of llama.cpp."""
    gguf = smollm2(bench)
    return {
        **engines_of(bench, gguf, smollm2(bench, "q4_0"), target),
        OPENVINO: partial(engines.openvino, bench.peers_python, gguf),
    }


def ours(bench: Workbench) -> Path:
    """Our artifact of SmolLM2-135M in 4.25 bits."""
    return compiled(bench, smollm2(bench), "native", RECIPES)


def machine_part(bench: Workbench) -> Part:
    """Reading in the cache, at the size of the model, beyond; multiplying."""
    roofs, size = Roofs.build(bench), work(smollm2(bench), BITS).bytes

    def measured() -> Mapping[Figure, float]:
        figures = {}
        for threads in (1, THREADS):
            for pages, how in (("read", ""), ("huge", " in huge pages")):
                for megabytes in (8, size // 10**6, 700):
                    figure = Figure(f"read {megabytes} MB{how}, {with_threads(threads)}", "GB/s")
                    figures[figure] = roofs.read(megabytes * 10**6, threads, pages) / 1e9
            figures[Figure(f"int8 products, {with_threads(threads)}", "G/s")] = (
                roofs.products(threads) / 1e9
            )
        return figures

    return Part("The machine", {ROOF: measured})


def decode_part(bench: Workbench) -> Part:
    one, two = decode(1), decode(THREADS)
    return Part(
        "Decoding 128 tokens",
        {who: speeds(e, threads=(1, THREADS)) for who, e in smollm2_engines(bench).items()},
        (
            against(LLAMA, two, "≥ 2.8"),
            against(LLAMA, one, "≥ 2.5"),
            against(LLAMA_4, two, ""),
            against(LLAMA_4, one, ""),
            against(LLAMA, two, "", SAME),
            against(LLAMA, one, "", SAME),
            against(OPENVINO, two, ""),
            against(ROOF, two, "≥ 0.85"),
            against(ROOF, one, ""),
        ),
    )


def prefill_part(bench: Workbench) -> Part:
    contenders = smollm2_engines(bench)
    del contenders[LLAMA_4]  # its head is computed for the last token only
    return Part(
        "Prefill",
        {who: speeds(engine, prompts=PROMPTS) for who, engine in contenders.items()},
        (
            *(against(LLAMA, prefill(n), "≥ 3.0") for n in PROMPTS),
            *(against(LLAMA, prefill(n), "", SAME) for n in PROMPTS),
            *(against(OPENVINO, prefill(n), "≥ 1.8") for n in PROMPTS),
            *(against(ROOF, prefill(n), "") for n in PROMPTS),
        ),
    )


def avx2_part(bench: Workbench) -> Part:
    contenders = smollm2_engines(bench, "x86-64-v3")
    del contenders[OPENVINO]  # which takes what the CPU has
    figures = (decode(THREADS), *map(prefill, PROMPTS))
    return Part(
        "AVX2 alone",
        {who: speeds(e, PROMPTS, (THREADS,)) for who, e in contenders.items()},
        (
            *(against(LLAMA, figure, "≥ 1.5") for figure in figures),
            *(against(LLAMA, figure, "", SAME) for figure in figures),
        ),
    )


def shape_part(bench: Workbench, name: str) -> Part:
    """A model that no cache holds; a head in Q6_K is int8 in ours on llama.cpp's weights."""
    contenders = engines_of(bench, random_model(bench, name), random_model(bench, name, "Q4_0"))
    two, prompt = decode(THREADS), prefill(PROMPTS[0])
    return Part(
        f"Random weights in the shape of {name}",
        {who: speeds(e, PROMPTS[:1], (THREADS,)) for who, e in contenders.items()},
        (
            against(LLAMA, two, "≥ 1.15"),
            against(LLAMA_4, two, ""),
            against(ROOF, two, "≥ 0.85"),
            against(LLAMA, prompt, "≥ 2"),
        ),
    )


def context_part(bench: Workbench) -> Part:
    gguf, new = smollm2(bench), 64
    artifact = ours(bench)
    llama = bench.llama("native", "llama-bench")
    figures = {at: decode(THREADS, f" at context {at}") for at in (SHORT, LONG)}

    def of_ours(at: int) -> float:
        prompt = at - new // 2
        return engines.edge_llm(artifact, prompt=prompt, new=new, threads=THREADS).decode

    def of_theirs(at: int) -> float:
        depth = at - new // 2
        sizes = {"prompt": 0, "new": new, "threads": THREADS, "depth": depth}
        return engines.llama_cpp(llama, gguf, **sizes).decode

    return Part(
        "Long contexts",
        {
            OURS: lambda: {figure: of_ours(at) for at, figure in figures.items()},
            LLAMA: lambda: {figure: of_theirs(at) for at, figure in figures.items()},
        },
        (
            within(OURS, figures[SHORT], figures[LONG], "≤ 1.25"),
            within(LLAMA, figures[SHORT], figures[LONG]),
        ),
    )


def together_part(bench: Workbench) -> Part:
    gguf = smollm2(bench)
    artifact = ours(bench)
    llama = bench.llama("native", "llama-batched-bench")
    figures = {n: decode(THREADS, f", {n} together") for n in (1, TOGETHER)}

    def of_ours(sequences: int) -> float:
        numbers = map(str, (sequences, NEW, THREADS))
        return float(
            run([sys.executable, "-m", "benchmarks.speed.together", str(artifact), *numbers])
        )

    def of_theirs(sequences: int) -> float:
        return engines.llama_cpp_together(
            llama, gguf, sequences=sequences, new=NEW, threads=THREADS
        )

    return Part(
        "Sequences decoded together",
        {
            OURS: lambda: {figure: of_ours(n) for n, figure in figures.items()},
            LLAMA: lambda: {figure: of_theirs(n) for n, figure in figures.items()},
        },
        (
            within(OURS, figures[TOGETHER], figures[1], "≥ 2.5"),
            within(LLAMA, figures[TOGETHER], figures[1]),
        ),
    )


def busy_part(bench: Workbench) -> Part:
    idle, busy = decode(THREADS, ", idle machine"), decode(THREADS, ", a busy loop a core")

    def both(engine: Engine) -> Mapping[Figure, float]:
        figures = {idle: engine(prompt=FEW, new=NEW, threads=THREADS).decode}
        with busy_cpus():
            figures[busy] = engine(prompt=FEW, new=NEW // 4, threads=THREADS).decode
        return figures

    contenders = {who: e for who, e in smollm2_engines(bench).items() if who in (OURS, LLAMA)}
    return Part(
        "Busy neighbours",
        {who: partial(both, engine) for who, engine in contenders.items()},
        (within(OURS, busy, idle, "≥ 0.35"), within(LLAMA, busy, idle)),
    )


def serve_part(bench: Workbench) -> Part:
    gguf = smollm2(bench)
    artifact = ours(bench)
    first = Figure("start of the process to first token", "s")
    resident = Figure(f"resident, context {servers.CONTEXT}, after an answer", "MB")
    server = partial(servers.llama_server_served, bench.llama("native", "llama-server"), gguf)

    def life(serve: Callable[[], servers.Served]) -> Mapping[Figure, float]:
        served = serve()
        return {first: served.first_token_seconds, resident: served.resident_bytes / 1e6}

    cli, service, theirs = "edge-llm run", "edge-llm serve", "llama-server"
    return Part(
        "Starting and serving",
        {
            cli: lambda: {first: servers.edge_llm_run(artifact, THREADS)},
            service: partial(life, partial(servers.edge_llm_served, artifact, THREADS)),
            theirs: partial(life, partial(server, THREADS)),
            f"{theirs} --no-warmup": partial(life, partial(server, THREADS, "--no-warmup")),
        },
        (
            against(theirs, first, "≤ 0.8", service),
            against(theirs, first, "≤ 0.8", cli),
            against(theirs, resident, "≤ 0.8", service),
        ),
    )


def outside_part(bench: Workbench) -> Part:
    share = Figure("share of a decode step outside compiled code", "%")

    def measured(artifact: Path) -> Mapping[Figure, float]:
        return {share: 100 * engines.outside_share(artifact, new=NEW, threads=THREADS)}

    same = compiled(bench, smollm2(bench), "native")
    return Part(
        "Outside compiled code",
        {OURS: partial(measured, ours(bench)), SAME: partial(measured, same)},
    )


PARTS: MappingProxyType[str, Callable[[Workbench], Part]] = MappingProxyType(
    {
        "machine": machine_part,
        "decode": decode_part,
        "prefill": prefill_part,
        "avx2": avx2_part,
        "llama-1b": partial(shape_part, name="llama-3.2-1b"),
        "qwen-0.5b": partial(shape_part, name="qwen2.5-0.5b"),
        "context": context_part,
        "together": together_part,
        "busy": busy_part,
        "serve": serve_part,
        "outside": outside_part,
    }
)
