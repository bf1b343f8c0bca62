"""One measurement of OpenVINO GenAI, run by the interpreter that has it, in a process of its own.

openvino_run.py FILE.gguf --prompt 128 --new 8 --threads 2
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import openvino as ov
import openvino_genai as genai

WARM_UP, MEASURED = 1, 2  # seeds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for size in ("--prompt", "--new", "--threads"):
        parser.add_argument(size, type=int, required=True)
    sizes = parser.parse_args()
    pipeline = genai.LLMPipeline(sizes.model, "CPU", INFERENCE_NUM_THREADS=sizes.threads)
    config = genai.GenerationConfig(
        max_new_tokens=sizes.new, min_new_tokens=sizes.new, ignore_eos=True, do_sample=False
    )
    for seed in (WARM_UP, MEASURED):
        metrics = pipeline.generate(prompt(sizes.prompt, seed), config).perf_metrics
    record = {
        "prompt_tokens": metrics.get_num_input_tokens(),
        "time_to_first_token_ms": metrics.get_ttft().mean,
        "time_per_token_ms": metrics.get_tpot().mean,
    }
    print(json.dumps(record))


def prompt(tokens: int, seed: int) -> genai.TokenizedInputs:
    """Tokens at random: those of one prompt again would come out of the pipeline's prefix cache."""
    ids = np.random.default_rng(seed).integers(1000, 40000, (1, tokens), np.int64)
    return genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))


if __name__ == "__main__":
    main()
