"""Matrices rounded on their way into a product, so that a model learns to be good when rounded.

Rounding has no slope: the gradient passes it as if it were not there, except where a weight lies
beyond the grid (Bengio et al., 2013, arXiv:1308.3432). Scales learn too (Esser et al., 2020, LSQ,
arXiv:1902.08153). Both start from a quantized checkpoint, whose values the first step computes.

    rounding = Rounding(decoder, quantized, torch.bfloat16)
    decoder.transform = rounding
    ...                                             # training
    rounding.matrix(name, decoder.weights[key(name)])       # Q4
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compile.checkpoint import Q4, Q8, Checkpoint, Matrix
from compile.distill.decoder import Decoder, key

EDGE = 0.3  # of a step: how far from its grid value a weight may start


class Rounding(nn.Module):
    """The scales of every quantized matrix, and the function that rounds by them."""

    def __init__(self, decoder: Decoder, quantized: Checkpoint | None, dtype: torch.dtype) -> None:
        """Begin where ``quantized`` is: the decoder's weights move into its grid's cells.

        Args:
            decoder: with the exact weights.
            quantized: the same model, its matrices rounded; None rounds nothing.
            dtype: of the products.
        """
        super().__init__()
        self.scales = nn.ParameterDict()
        self.minimums = nn.ParameterDict()
        self._dtype = dtype
        self._grids: dict[str, tuple[int, int, int]] = {}  # lowest and highest q, and that of 0
        self._rounded: dict[str, Tensor] = {}
        if quantized is None:
            return
        for name in quantized.names():
            matrix = quantized.tensor(name)
            if isinstance(matrix, Q4 | Q8):
                self._start(name, matrix, decoder.weights[key(name)])

    def forward(self, name: str, weight: Tensor) -> Tensor:
        """The matrix as the device will have it, in the products' type."""
        if name not in self._grids:
            return weight.to(self._dtype)
        if name not in self._rounded:
            arguments = weight, *self._scale(name), self._grids[name], self._dtype
            self._rounded[name] = Round.apply(*arguments)  # type: ignore[no-untyped-call]
        return self._rounded[name]

    def __contains__(self, name: str) -> bool:
        """Whether a matrix is rounded."""
        return name in self._grids

    def forget(self) -> None:
        """Weights have changed: round anew."""
        self._rounded.clear()

    @torch.no_grad()
    def matrix(self, name: str, weight: Tensor) -> Matrix:
        """What a weight has become."""
        scale, minimum = self._scale(name)
        lowest, highest, zero = self._grids[name]
        q = steps(weight, scale, minimum, zero).round_().clamp_(lowest, highest).flatten(1)
        if lowest < 0:
            return Q8(q.cpu().numpy().astype(np.int8), halves(scale))
        low = None if minimum is None else halves(minimum)
        return Q4(q.cpu().numpy().astype(np.uint8), halves(scale), low)

    @torch.no_grad()
    def _start(self, name: str, matrix: Matrix, weight: nn.Parameter) -> None:
        minimum = matrix.minimum if isinstance(matrix, Q4) else None
        zero = 8 if isinstance(matrix, Q4) and minimum is None else 0
        self._grids[name] = (-127, 127, 0) if isinstance(matrix, Q8) else (0, 15, zero)
        self.scales[key(name)] = nn.Parameter(torch.from_numpy(matrix.scale.astype(np.float32)))
        if minimum is not None:
            self.minimums[key(name)] = nn.Parameter(torch.from_numpy(minimum.astype(np.float32)))
        scale, low = self._scale(name)
        q = torch.from_numpy(matrix.q.astype(np.float32)).view(*scale.shape, -1)
        x = (
            steps(weight, scale, low, zero)
            .clamp_(q - EDGE, q + EDGE)
            .sub_(zero)
            .mul_(scale[..., None])
        )
        weight.copy_((x if low is None else x.add_(low[..., None])).flatten(1))

    def _scale(self, name: str) -> tuple[Tensor, Tensor | None]:
        minimum = self.minimums.get(key(name))
        return self.scales[key(name)], minimum


class Round(torch.autograd.Function):
    """``scale · (q - zero) + minimum`` with the nearest q; slopes as the module says."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor,
        minimum: Tensor | None,
        grid: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        lowest, highest, zero = grid
        x = steps(weight, scale, minimum, zero)
        q = x.round().clamp_(lowest, highest)
        inside = (x > lowest - 0.5) & (x < highest + 0.5)
        ctx.save_for_backward(torch.where(inside, q - x, q - zero).to(torch.bfloat16), inside)
        value = q.sub_(zero).mul_(halved(scale)[..., None])
        if minimum is not None:
            value.add_(halved(minimum)[..., None])
        return value.flatten(1).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_scale, inside = ctx.saved_tensors
        gradient = gradients[0].view(by_scale.shape).float()
        to_scale = (gradient * by_scale).sum(-1)
        to_minimum = (gradient * ~inside).sum(-1) if ctx.needs_input_grad[2] else None
        return gradient.mul_(inside).flatten(1), to_scale, to_minimum, None, None


def steps(weight: Tensor, scale: Tensor, minimum: Tensor | None, zero: int) -> Tensor:
    """Where each weight lies on its grid, float32 [rows, groups, group]."""
    values = weight.detach().view(*scale.shape, -1)
    divisor = halved(scale)
    divisor = torch.where(divisor == 0, torch.inf, divisor)[..., None]
    if minimum is not None:
        values = values - halved(minimum)[..., None]
    place: Tensor = values / divisor + zero
    return place


def halves(scale: Tensor) -> NDArray[np.float16]:
    """For a checkpoint."""
    array: NDArray[np.float16] = scale.detach().half().cpu().numpy()
    return array


def halved(scale: Tensor) -> Tensor:
    """As float16 has it."""
    return scale.detach().half().float()
