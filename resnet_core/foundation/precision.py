"""Equal, rounded, or different: two tensors judged to the bit, or by their errors against float64.

No tolerance is chosen by hand: an error may be at most FACTOR times the error that the reference itself makes.
"""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR = 10.0


def float_errors(ours: Tensor, theirs: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest errors of two tensors. The second is taken as at least half a float32 step of the largest value."""
    floor = exact.abs().max().item() * torch.finfo(torch.float32).eps / 2
    error, reference = ((each.double() - exact).abs().max().item() for each in (ours, theirs))
    return error, max(reference, floor)


def ratio(error: float, reference: float) -> float:
    """How many times larger the error is; infinite where it is not a number."""
    if not (error < float("inf") and reference < float("inf")):
        return float("inf")
    return error / reference if reference else float(error > 0)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values of the same type; -0.0 is not 0.0, and a NaN equals itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(each.detach().contiguous().flatten().view(torch.uint8) for each in (a, b)))


def same_distribution(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors can be samples of one distribution. It says no wrongly about once in a billion tensors.

    The Kolmogorov-Smirnov test and, since that says little about few values, the distance of the means. Constants are
    compared exactly, single values not at all. Large tensors are thinned out to about 10,000 values.
    """
    first, second = (each.detach().cpu().double().flatten()[:: 1 + each.numel() // 10_000] for each in (a, b))
    if a.numel() == b.numel() == 1:
        return True
    if (first == first[0]).all() or (second == second[0]).all():
        return torch.equal(first, second)
    variance = first.var() / len(first) + second.var() / len(second)
    if (first.mean() - second.mean()).abs() > 12 * variance.sqrt():
        return False
    points = torch.cat([first, second])
    ranks = [
        torch.searchsorted(each.sort().values, points, right=True).double() / len(each) for each in (first, second)
    ]
    bound = 3.27 * (1 / len(first) + 1 / len(second)) ** 0.5  # sqrt(-ln(1e-9 / 2) / 2) = 3.27
    return (ranks[0] - ranks[1]).abs().max().item() <= bound
