"""The instruction counter, on a program whose instructions can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.instructions.counter import Block, Counter, CountError, compile_c, parse
from targets import TARGETS

# Two instructions a turn, in two stages of which the second has three times the turns.
PROGRAM = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>

static void turns(long n) { __asm__ volatile("1: subs %0, %0, #1\\n b.ne 1b" : "+r"(n)); }

int main(int argc, char **argv) {
    long n = argc > 1 ? atol(argv[1]) : 0;
    syscall(9000, 0);
    turns(n);
    syscall(9000, 1);
    turns(3 * n);
    syscall(9000, 2);
}
"""


@pytest.mark.board
def test_a_known_program(tmp_path: Path) -> None:
    target = TARGETS["rpi5"]
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    compile_c(source, program, "-target", f"{target.triple}.{target.glibc}")
    with Counter("cortex-a76") as counter:
        few, many = counter.program(program, 1000), counter.program(program, 11000)
        with pytest.raises(CountError, match="qemu-aarch64: "):
            counter.program(tmp_path / "absent")
    # The way into and out of the loops is the same in both.
    assert [b - a for a, b in zip(few.stages, many.stages, strict=True)] == [20_000, 60_000]
    assert many.total == sum(many.stages)
    hottest = many.blocks[0]
    assert (hottest.instructions, hottest.runs) == (2, 3 * 11_000 - 1)


def test_blocks_translated_twice_are_one() -> None:
    text = "stage 30\nblock 4100 5 2\nblock 4200 1 10\nblock 4100 5 2\n"
    counted = parse(text, 4096, ["embed"])
    assert counted.names == ("embed",)
    assert counted.stages == (30,)
    assert counted.blocks == (Block(4, 5, 4), Block(104, 1, 10))
