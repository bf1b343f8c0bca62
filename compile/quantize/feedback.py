"""Rounding a matrix so that its products stay right: each column's error is made good by the rest.

The columns of ``W`` are rounded one after the other; what rounding a column does to the products
``W x`` is undone as far as the columns still to come allow (Frantar et al., 2023, GPTQ,
arXiv:2210.17323). A group's scale is searched when its turn comes, for the weights as they are by
then.

    q4 = with_feedback(weight, hessian, MatrixFormat(4, 64, True))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compile.checkpoint import Q4, Q8, Matrix
from compile.quantize.formats import MatrixFormat
from compile.quantize.grid import Grid, search

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

DAMPING = 0.01  # of the mean diagonal, added to it: keeps directions that no token took in bounds


def with_feedback(weight: F32, hessian: F64, form: MatrixFormat) -> Matrix:
    """A matrix in ``form`` whose products are as near as may be to those of ``weight``.

    Args:
        weight: [rows, columns].
        hessian: [columns, columns], the sum of ``x xᵀ`` over the inputs seen.
        form: the format wanted; ``columns`` is a multiple of its group.
    """
    columns, group = weight.shape[1], form.group
    order = by_importance(np.diag(hessian), group)
    factor = feedback(hessian[np.ix_(order, order)])
    left = np.ascontiguousarray(weight.T[order])
    q = np.empty_like(left)
    grids: list[Grid] = []
    for start in range(0, columns, group):
        stop = start + group
        grid = search(left[start:stop], importance(factor[start:stop, start:stop]), form)
        errors = np.empty_like(left[start:stop])
        for i in range(start, stop):
            q[i] = grid.round(left[i])
            errors[i - start] = (left[i] - grid.value(q[i])) / factor[i, i]
            left[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
        grids.append(grid)
    return assembled(q, grids, order, form)


def by_importance(energy: F64, group: int) -> NDArray[np.intp]:
    """Columns in the order of rounding: what matters most first, each group in one piece.

    Args:
        energy: [columns], the squared inputs' sums.
    """
    groups = energy.reshape(-1, group)
    inside = np.argsort(-groups, axis=1, kind="stable")
    first = np.argsort(-groups.sum(1), kind="stable")
    return (inside + np.arange(len(groups))[:, None] * group)[first].reshape(-1)


def feedback(hessian: F64) -> F32:
    """The upper triangle ``U`` with ``UᵀU = H⁻¹``: row i says how later columns answer for i."""
    damped = hessian + np.eye(len(hessian)) * max(DAMPING * float(np.diag(hessian).mean()), 1e-30)
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    return np.ascontiguousarray(lower.T, np.float32)


def importance(factor: F32) -> F32:
    """Of a group's columns: what an error there costs once later columns have made amends."""
    return np.asarray(1 / np.square(np.diag(factor)), np.float32)


def assembled(q: F32, grids: list[Grid], order: NDArray[np.intp], form: MatrixFormat) -> Matrix:
    """The matrix in its own order of columns, from q [columns, rows] in the order of rounding."""
    whole = np.empty(q.shape[::-1], np.int8 if form.bits == 8 else np.uint8)
    whole[:, order] = q.T
    groups = np.argsort(order[:: form.group])
    scale = np.stack([grids[i].scale for i in groups], 1)
    if form.bits == 8:
        return Q8(whole.view(np.int8), scale)
    minimums = [grids[i].minimum for i in groups]
    present = [minimum for minimum in minimums if minimum is not None]
    return Q4(whole.view(np.uint8), scale, np.stack(present, 1) if present else None)


def repaired(weight: F32, hessian: F64, cross: F64) -> F32:
    """The matrix that gives, from the inputs there are, what ``weight`` gives from exact ones.

    Least squares, held near ``weight`` where the tokens say little.

    Args:
        weight: [rows, columns].
        hessian: Σ y yᵀ of the inputs y there are.
        cross: Σ x yᵀ with the exact inputs x.
    """
    hold = np.eye(len(hessian)) * (DAMPING * float(np.diag(hessian).mean()))
    change = np.linalg.solve((hessian + hold).T, (cross - hessian).T).T
    return weight + (weight @ change.astype(np.float32))


def nearest_in(weight: F32, form: MatrixFormat) -> Matrix:
    """Each weight rounded by itself, on the grids that suit each group best."""
    return with_feedback(weight, np.eye(weight.shape[1]), form)
