"""How far a training is, in one file that holds all that going on needs; no pickle.

progress = Progress(Path("work"), parameters, optimizer, leads=True)
step = progress.restore()       # 0 where there is nothing yet
progress.save(step)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compile.distill.machine import room_for
from compile.foreign_errors import translated
from edge_llm.files import replacing

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, by its own names


@dataclass(frozen=True)
class Point:
    """A point of the curve."""

    step: int
    tokens: int  # seen so far
    seconds: float  # of training so far
    loss: float  # mean since the point before
    kl: float | None = None  # to the teacher on held-out tokens, where it was measured


class Progress:
    """Weights, moments and curve of a training, in ``folder/state.safetensors``.

    Of several processes that train together one ``leads``: all read, it alone writes.
    """

    def __init__(
        self,
        folder: Path,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        leads: bool,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "state.safetensors"
        self._curve = folder / "curve.jsonl"
        self._parameters = parameters
        self._optimizer = optimizer
        self._leads = leads
        self.points: list[Point] = []

    def save(self, step: int) -> None:
        """Keep the state behind ``step`` steps; the file before stays until this one is whole."""
        if not self._leads:
            return
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            tensors[name] = parameter.detach().contiguous()
            for moment in MOMENTS:
                tensors[f"{name} {moment}"] = self._optimizer.state[parameter][moment]
        curve = json.dumps([asdict(point) for point in self.points])
        with translated(f"cannot write {self._path}"):
            with replacing(self._path) as file:
                save_file(tensors, file.name, {"step": str(step), "curve": curve})
            self._write_curve()

    @torch.no_grad()
    def restore(self) -> int:
        """Go back to what was saved last; returns its step."""
        if not self._path.exists():
            return 0
        with (
            translated(f"{self._path}: damaged; remove it to begin anew"),
            room_for(f"{self._path}, which is kept: free some and go on"),
            safe_open(self._path, framework="pt") as file,
        ):
            metadata = file.metadata()
            for name, parameter in self._parameters.items():
                parameter.copy_(file.get_tensor(name))
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(metadata["step"])),
                    **{m: file.get_tensor(f"{name} {m}").to(parameter.device) for m in MOMENTS},
                }
            self.points = [Point(**point) for point in json.loads(metadata["curve"])]
            if self._leads:
                self._write_curve()  # whose last point a power cut may have cost
        return int(metadata["step"])

    def _write_curve(self) -> None:
        with replacing(self._curve) as file:
            file.writelines(json.dumps(asdict(point)).encode() + b"\n" for point in self.points)
