"""The CPU check: what a machine is, and a refusal instead of an illegal instruction."""

from __future__ import annotations

import platform
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from edge_llm.cpu import Host, arm_features, check_target, host, x86_features
from edge_llm.errors import TargetError
from targets import TARGETS, resolve
from tests.sample_artifact import manifest_target

# Auxiliary vector under `qemu-aarch64 -cpu cortex-a72` and `-cpu cortex-a76`.
A72 = arm_features(0x8FB, 0)
A76 = arm_features(0x119FFB, 0)

PI4 = Host("aarch64", A72, "Raspberry Pi 4 Model B Rev 1.4", "2.36")
PI5 = Host("aarch64", A76, "Raspberry Pi 5 Model B Rev 1.0", "2.36")
XEON = Host("x86_64", frozenset(TARGETS["x86-avx512-vnni"].features), "Xeon", "2.36")
HASWELL = Host("x86_64", frozenset(TARGETS["x86-64-v3"].features), "Haswell", "2.36")

CPUINFO = """processor\t: 0
model name\t: Intel(R) N100
flags\t\t: fpu avx2 avx_vnni
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


def refusal(target: str, machine: Host) -> str:
    with pytest.raises(TargetError) as caught:
        check_target(manifest_target(target), machine, "model.edge")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_this_machine_runs_what_is_compiled_for_it() -> None:
    machine = host()
    assert machine.machine == platform.machine()
    assert machine.model_name
    assert re.fullmatch(r"2\.\d+", machine.glibc or "")
    target = resolve("native", machine.machine, machine.features)
    check_target(manifest_target(target.name), machine)


def test_arm_features_by_the_names_of_cpuinfo() -> None:
    assert {"fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid"} == A72
    assert {
        "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp"
    } == A76 - A72  # fmt: skip
    assert arm_features(0, 1 << 13 | 1 << 1) == {"i8mm", "sve2"}
    assert arm_features(0, 0) == frozenset()


def test_x86_features_are_those_of_the_first_cpu() -> None:
    assert x86_features(CPUINFO) == (frozenset({"fpu", "avx2", "avx_vnni"}), "Intel(R) N100")
    assert x86_features("") == (frozenset(), "")


@pytest.mark.parametrize(
    ("target", "machine"),
    [("rpi3", PI4), ("rpi4", PI5), ("rpi5", PI5), ("x86-64-v3", XEON), ("x86-avx512-vnni", XEON)],
)
def test_accepted(target: str, machine: Host) -> None:
    check_target(manifest_target(target), machine)


def test_missing_features_are_named_and_what_to_do() -> None:
    assert refusal("rpi5", PI4) == (
        "model.edge was compiled for rpi5 (aarch64); this CPU has no asimddp, atomics, asimdrdm, "
        "fphp, asimdhp, lrcpc: compile with --target rpi4"
    )
    assert refusal("x86-avx-vnni", HASWELL) == (
        "model.edge was compiled for x86-avx-vnni (x86_64); this CPU has no avx_vnni: "
        "compile with --target x86-64-v3"
    )


def test_a_target_that_lacks_only_a_minor_feature_is_not_advised_again() -> None:
    machine = replace(PI5, features=A76 - {"lrcpc"})
    assert refusal("rpi5", machine).endswith("has no lrcpc: compile with --target rpi4")


def test_another_machine() -> None:
    assert refusal("rpi5", XEON) == (
        "model.edge was compiled for rpi5 (aarch64); this machine is x86_64: "
        "compile with --target x86-avx512-vnni"
    )
    assert refusal("x86-64-v3", PI5).endswith("aarch64: compile with --target rpi5")
    assert refusal("rpi4", Host("riscv64", frozenset(), "", "2.36")).endswith(
        "this machine is riscv64: no target of edge-llm fits it"
    )


def test_a_32_bit_system_on_a_64_bit_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: SimpleNamespace(machine="aarch64"))
    monkeypatch.setattr("struct.calcsize", lambda _: 4)
    machine = host()
    assert machine.machine == "armv7l"
    assert refusal("rpi4", machine).endswith("is armv7l: install a 64-bit operating system")


def test_an_older_or_another_c_library() -> None:
    assert refusal("rpi4", replace(PI4, glibc="2.28")) == (
        "model.edge was compiled for rpi4 (aarch64); this system has glibc 2.28, older than 2.31: "
        "upgrade it"
    )
    assert refusal("rpi4", replace(PI4, glibc=None)).endswith("has no glibc, which it needs")
    check_target(manifest_target("rpi4"), replace(PI4, glibc="2.100"))
