"""`python -m parity.benchmarks.overhead` times two sides that do the same work."""

from itertools import islice

import torch

from parity.benchmarks.overhead import by_hand, by_trainer, in_memory, tiny
from parity.benchmarks.turns import compare


def test_both_sides_take_the_same_steps_to_the_bit():
    losses = []
    batches = in_memory(8, 8)
    for side in (by_trainer, by_hand):
        torch.manual_seed(0)
        losses.append(list(islice(side(tiny(), batches), 120)))  # into the second epoch
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 120


def test_what_is_compared_runs_in_turn_after_a_warm_up_of_each(capsys):
    order = []
    medians = compare("both", lambda: order.append("ours"), lambda: order.append("theirs"), runs=3)
    assert order == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert capsys.readouterr().out.startswith("both  ")
    assert medians.ratio > 0
