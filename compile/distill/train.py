"""The student learns what the teacher would say next; interrupted, it goes on to the same result.

    settings = Settings(steps=400)
    student = train(student, teacher, tokens, settings, folder, machine)
    student = train(student, teacher, tokens, settings, folder, machine, quantized=rounded)

The loss is the Kullback-Leibler divergence of the student's predictions from the teacher's over the
whole vocabulary (Hinton et al., 2015, arXiv:1503.02531), and, for a pruned student, the distance of
its layers' states from those of the layers it was cut from (Muralidharan et al., 2024, Minitron,
arXiv:2407.14679). With ``quantized`` matrices are rounded as they are used, and come out in its
formats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from compile.checkpoint import Checkpoint
from compile.distill.decoder import Decoder
from compile.distill.machine import Machine, room_for
from compile.distill.progress import Point, Progress
from compile.distill.rounding import Rounding
from compile.distill.student import LearnedCheckpoint
from compile.distill.teacher import Teacher
from compile.errors import CompileError

Tokens = NDArray[np.int32]  # [n, length]
Report = Callable[[float], None]

BETAS = (0.9, 0.95)  # of AdamW: gradients of a few thousand tokens change quickly
LARGEST_GRADIENT = 1.0  # norm over all weights
LAST_RATE = 0.05  # of the learning rate, at the end of the cosine
SCALES_RATE = 0.03  # of the learning rate: a scale moves all the weights of its group


@dataclass(frozen=True)
class Settings:
    """How a student is trained."""

    steps: int
    batch: int = 2  # windows a step
    learning_rate: float = 3e-4
    warmup: float = 0.05  # share of the steps
    states: float = 0.0  # weight of the distance of states
    seed: int = 0
    save_every: int = 50  # steps


def train(
    student: Checkpoint,
    teacher: Teacher,
    tokens: Tokens,
    settings: Settings,
    folder: Path,
    machine: Machine,
    *,
    quantized: Checkpoint | None = None,
    layers: Sequence[int] | None = None,
    held_out: Tokens | None = None,
    report: Report = lambda _done: None,
) -> LearnedCheckpoint:
    """Train ``student`` on what ``teacher`` says of ``tokens``.

    Args:
        student: where to begin.
        teacher: of the same vocabulary.
        tokens: int32 [n, length], taken in an order that ``settings.seed`` decides.
        settings: how.
        folder: where the state is kept, and found again after an interruption.
        machine: where.
        quantized: the student with its matrices rounded: they stay so while they learn.
        layers: of a pruned student, the teacher's layer that each of its own was.
        held_out: int32 [n, length] of which the curve shows the divergence.
        report: is told the share that is done.

    CompileError where the loss is no longer a number, the processes cannot share a batch alike, or
    a step takes more memory than a GPU has.
    """
    if settings.batch % machine.processes:
        raise CompileError(
            f"batch {settings.batch}: {machine.processes} processes share it: give a multiple of "
            f"{machine.processes}"
        )
    order = Order(len(tokens), settings.seed)
    with room_for("what learns, beside its teacher: free some, and what was learned goes on"):
        run = Run(student, teacher, settings, folder, machine, quantized, layers)
        step = run.progress.restore()
    if not machine.agree(step):
        raise CompileError(f"{folder}: the processes go on from different steps: start them again")
    while step < settings.steps:
        until = min(settings.steps, step + settings.save_every)
        losses = []
        started = time.monotonic()
        while step < until:
            picks = order.batch(step, settings.batch)[machine.rank :: machine.processes]
            step += 1
            with room_for(
                f"{len(picks)} sequences of {tokens.shape[1]} tokens in a step on "
                f"{machine.device}: give a smaller batch"
            ):
                losses.append(run.step(step, tokens[picks]))
            report(step / settings.steps)
        seconds = time.monotonic() - started
        with room_for(f"the held-out text on {machine.device}: give a smaller length in [data]"):
            run.keep(step, losses, seconds, tokens.shape[1], held_out)
    return run.learned()


class Run:
    """A student, its optimizer and what it has come to."""

    def __init__(
        self,
        student: Checkpoint,
        teacher: Teacher,
        settings: Settings,
        folder: Path,
        machine: Machine,
        quantized: Checkpoint | None,
        layers: Sequence[int] | None,
    ) -> None:
        self._student, self._teacher = student, teacher
        self._settings, self._machine, self._layers = settings, machine, layers
        self.decoder = Decoder(student)
        self.rounding = Rounding(self.decoder, quantized, machine.dtype)
        self.decoder.transform = self.rounding
        self.decoder.to(machine.device)
        weights, scales = (list(m.parameters()) for m in (self.decoder.weights, self.rounding))
        groups = [
            {"params": parameters, "rate": settings.learning_rate * share}
            for parameters, share in ((weights, 1.0), (scales, SCALES_RATE))
            if parameters
        ]
        self._weights = weights
        self._optimizer = torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0)
        parameters = dict(self.decoder.named_parameters())
        self.progress = Progress(folder, parameters, self._optimizer, leads=machine.rank == 0)

    def step(self, number: int, windows: Tokens) -> float:
        """Learn from int32 [batch, n]; returns the loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["rate"] * self._rate(number)
        self.rounding.forget()
        tokens = torch.from_numpy(windows).long().to(self._machine.device)
        loss = self._loss(tokens)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._machine.average_gradients(
            p for g in self._optimizer.param_groups for p in g["params"]
        )
        norm = clip_grad_norm_(self._weights, LARGEST_GRADIENT)
        value = loss.detach()
        self._machine.average([value])
        for what, size in (("loss", float(value)), ("gradient", float(norm))):
            if not math.isfinite(size):
                raise CompileError(
                    f"the {what} is {size} at step {number}: give a lower learning_rate than "
                    f"{self._settings.learning_rate:g}, or look for broken text in the data"
                )
        self._optimizer.step()
        return float(value)

    def keep(
        self, step: int, losses: list[float], seconds: float, length: int, held_out: Tokens | None
    ) -> None:
        """Save the state behind ``step``, with a point of the curve."""
        before = self.progress.points[-1].seconds if self.progress.points else 0.0
        self.rounding.forget()
        kl = None if held_out is None else divergence(self.decoder, self._teacher, held_out)
        self.progress.points.append(
            Point(
                step,
                tokens=step * self._settings.batch * length,
                seconds=round(before + seconds, 1),
                loss=float(np.mean(losses)),
                kl=kl,
            )
        )
        self.progress.save(step)

    def learned(self) -> LearnedCheckpoint:
        """The student as it is now."""
        return LearnedCheckpoint(self._student, self.decoder, self.rounding)

    def _loss(self, tokens: Tensor) -> Tensor:
        lesson = self._teacher.lesson(tokens)
        states = list(self.decoder.states(tokens))
        logits = self.decoder.logits(self.decoder.normalized(states[-1]))
        loss = kl_divergence(lesson.logits, logits).mean()
        if self._settings.states and self._layers is not None:
            pairs = zip(states[1:], self._layers, strict=True)
            off = [distance(state, lesson.states[layer + 1].float()) for state, layer in pairs]
            loss = loss + self._settings.states * torch.stack(off).mean()
        return loss

    def _rate(self, step: int) -> float:
        """Of the learning rate: a linear warm-up, then a cosine."""
        steps = self._settings.steps
        warm = max(1, round(steps * self._settings.warmup))
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        return min(1.0, step / warm) * (LAST_RATE + (1 - LAST_RATE) * cosine)


class Order:
    """Which windows a step takes: every window once an epoch, each epoch in an order of its own."""

    def __init__(self, windows: int, seed: int) -> None:
        self._windows, self._seed = windows, seed

    def batch(self, step: int, size: int) -> NDArray[np.intp]:
        """The windows of step 0, 1, …"""
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), self._windows)
        return np.concatenate([self._epoch(e)[places[epochs == e]] for e in np.unique(epochs)])

    def _epoch(self, epoch: int) -> NDArray[np.intp]:
        return np.random.default_rng((self._seed, int(epoch))).permutation(self._windows)


def kl_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Of logits [..., vocab], in nats: float32 [...].

    One of them may have some more, with which its matrix was filled up to a round number.
    """
    vocabulary = min(teacher.shape[-1], student.shape[-1])
    log_p, log_q = (x[..., :vocabulary].float().log_softmax(-1) for x in (teacher, student))
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def distance(state: Tensor, other: Tensor) -> Tensor:
    """Mean squared distance of states [batch, n, width], relative to each token's own square.

    A few tokens' states are a thousand times larger than others': without that they were all.
    """
    square = other.square().mean(-1, keepdim=True)
    return ((state - other).square() / square).mean()


@torch.no_grad()
def divergence(decoder: Decoder, teacher: Teacher, tokens: Tokens) -> float:
    """Mean divergence from the teacher over int32 [n, length]."""
    device = decoder.cos.device
    windows = (torch.from_numpy(window[None]).long().to(device) for window in tokens)
    return float(
        np.mean(
            [
                kl_divergence(teacher.lesson(w).logits, decoder.logits(decoder(w))).mean().item()
                for w in windows
            ]
        )
    )
