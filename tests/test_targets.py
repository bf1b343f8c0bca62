"""The targets: sound data, and ``native`` is the best that a machine can run."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_llm.cpu import Host, check_target
from edge_llm.errors import TargetError
from targets import TARGETS, Target, UnknownTargetError, resolve
from tests.sample_artifact import manifest_target


@pytest.mark.parametrize("name", TARGETS)
def test_fields(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert target.machine in ("x86_64", "aarch64")
    assert target.boards
    assert target.description
    assert len(set(target.features)) == len(target.features)
    assert all(attribute[0] in "+-" for attribute in target.attributes)
    assert tuple(map(int, target.glibc.split("."))) >= (2, 28)


@pytest.mark.parametrize("name", TARGETS)
def test_boards_have_memory_of_which_some_is_left(name: str) -> None:
    memory = TARGETS[name].memory
    assert (memory is None) == (TARGETS[name].machine == "x86_64")
    if memory is not None:
        assert memory.ram // 2 < memory.free < memory.ram


def test_a_zero_2_w_is_a_small_pi_3() -> None:
    zero, pi3 = TARGETS["rpi-zero2w"], TARGETS["rpi3"]
    for field in ("triple", "cpu", "attributes", "isa", "features", "glibc", "threads"):
        assert getattr(zero, field) == getattr(pi3, field)
    assert zero.memory is not None
    assert zero.memory.ram == 512 * 2**20


@pytest.mark.parametrize("name", TARGETS)
def test_a_name_is_itself_whatever_the_machine(name: str) -> None:
    assert resolve(name, "riscv64", set()) is TARGETS[name]


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_native_runs_where_it_was_resolved(target: Target) -> None:
    native = resolve("native", target.machine, set(target.features))
    machine = Host(target.machine, frozenset(target.features), "", "2.36")
    check_target(manifest_target(native.name), machine)
    assert native.isa == target.isa


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_advice_of_the_device_is_the_native_target(target: Target) -> None:
    machine = Host(target.machine, frozenset(target.features), "", "2.36")
    native = resolve("native", target.machine, set(target.features))
    other = "rpi5" if target.machine == "x86_64" else "x86-64-v3"
    with pytest.raises(TargetError, match=f"compile with --target {native.name}$"):
        check_target(manifest_target(other), machine)


def test_unknown_name_and_unfit_machine() -> None:
    with pytest.raises(UnknownTargetError, match="no target rpi9: choose native, rpi-zero2w, rpi3"):
        resolve("rpi9", "aarch64", {"asimd"})
    with pytest.raises(UnknownTargetError, match="no target fits this x86_64 machine"):
        resolve("native", "x86_64", {"sse2"})
    with pytest.raises(UnknownTargetError, match="no target fits this riscv64 machine"):
        resolve("native", "riscv64", set())


def test_targets_import_nothing_of_the_device() -> None:
    program = "import sys, targets; print([m for m in sys.modules if m.startswith('edge_llm')])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
