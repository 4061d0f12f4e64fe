"""Equal to the bit, rounding, or difference: judged against float64, never by a tolerance."""

import pytest
import torch

from resnet_core.foundation.precision import float_errors, ratio, same_bits, same_distribution


def test_errors_are_measured_against_float64():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    error, reference = float_errors(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), exact)
    assert error == 0.5
    assert reference == pytest.approx(2.0**-23)
    assert ratio(error, reference) > 1e6
    assert ratio(float("nan"), 1.0) == float("inf")


def test_same_bits_tells_what_equality_does_not():
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same_bits(torch.zeros(2), torch.zeros(3))


def normal(size, std=1.0, mean=0.0, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * std + mean


def test_draws_of_one_distribution_are_alike():
    for size in (5, 300, 40_000):
        for seed in range(20):
            assert same_distribution(normal(size, seed=seed), normal(size, seed=100 + seed))


@pytest.mark.parametrize(
    "other",
    [
        normal(40_000, std=1.25, seed=1),
        normal(40_000, mean=0.1, seed=1),
        torch.rand(40_000, generator=torch.Generator().manual_seed(1)) * 12**0.5 - 3**0.5,  # mean 0, std 1
        torch.zeros(40_000),
    ],
    ids=["std", "mean", "uniform", "constant"],
)
def test_draws_of_another_distribution_are_not(other):
    assert not same_distribution(normal(40_000), other)
    assert not same_distribution(other, normal(40_000))


def test_constants_are_told_apart_exactly():
    assert same_distribution(torch.ones(64), torch.ones(64))
    assert not same_distribution(torch.ones(64), torch.full((64,), 1 + 1e-6))
    assert same_distribution(torch.zeros(1), torch.ones(1))  # a single draw proves nothing


def test_few_values_far_away_are_not_alike():
    assert not same_distribution(normal(7), normal(7, mean=1000, seed=1))
