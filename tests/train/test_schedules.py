"""Learning rates against closed forms and torch's own schedulers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resnet_core.train.schedules import warmup_cosine


def test_warm_up_is_linear_and_ends_at_the_peak():
    rates = [warmup_cosine(step, peak=2.0, warmup_steps=4, total_steps=10) for step in range(4)]
    assert rates == [0.5, 1.0, 1.5, 2.0]


def test_without_warm_up_it_is_torchs_cosine():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        ours = warmup_cosine(step, peak=0.3, warmup_steps=0, total_steps=50)
        assert math.isclose(ours, optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


@given(st.integers(0, 50), st.integers(1, 200), st.floats(1e-4, 10))
def test_it_stays_between_0_and_the_peak_and_falls_after_warm_up(warmup_steps, more, peak):
    total = warmup_steps + more
    rates = [warmup_cosine(step, peak=peak, warmup_steps=warmup_steps, total_steps=total) for step in range(total)]
    assert all(0 < rate <= peak for rate in rates)
    assert max(rates) == pytest.approx(peak)
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
