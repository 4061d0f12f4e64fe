"""Order and shares as pure functions, searched by hypothesis."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_core.data.sampler import epoch_order, rank_batches, rank_share, repeat_samples, seed_from, steps_per_epoch

seeds = st.integers(0, 2**63)


@given(st.integers(1, 300), seeds, st.integers(0, 100))
def test_an_epoch_visits_each_sample_once_and_depends_on_seed_and_epoch_alone(num_samples, seed, epoch):
    order = epoch_order(num_samples, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(num_samples))
    assert order == epoch_order(num_samples, seed=seed, epoch=epoch)


def test_each_epoch_and_seed_has_its_own_order():
    orders = {tuple(epoch_order(100, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@given(st.lists(st.integers(0, 2**62), max_size=4), st.lists(st.integers(0, 2**62), max_size=4))
def test_seeds_differ_where_the_numbers_do(one, other):
    assert (seed_from(*one) == seed_from(*other)) == (one == other)
    assert 0 <= seed_from(*one) < 2**63


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 120))
def test_ranks_together_follow_the_order_and_leave_out_the_ragged_tail(world_size, batch, extra):
    global_batch = world_size * batch
    order = epoch_order(global_batch + extra, seed=0, epoch=0)
    by_rank = [
        rank_batches(order, global_batch=global_batch, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    steps = steps_per_epoch(len(order), global_batch=global_batch)
    assert [len(batches) for batches in by_rank] == [steps] * world_size
    seen = [index for step in range(steps) for rank in range(world_size) for index in by_rank[rank][step]]
    assert seen == order[: steps * global_batch]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 60))
def test_a_repeated_sample_is_in_one_batch_with_all_its_copies_and_the_epoch_is_as_long(repeats, different, extra):
    global_batch = repeats * different
    order = epoch_order(global_batch + extra, seed=0, epoch=0)
    repeated = repeat_samples(order, repeats=repeats, global_batch=global_batch)
    steps = steps_per_epoch(len(order), global_batch=global_batch, repeats=repeats)
    assert len(repeated) == steps * global_batch
    assert len(set(repeated)) == len(repeated)
    for step in range(steps):
        batch = repeated[step * global_batch : (step + 1) * global_batch]
        samples = order[step * different : (step + 1) * different]
        assert batch == [(sample, copy) for copy in range(repeats) for sample in samples]


def test_a_batch_that_cannot_hold_the_copies_is_refused():
    with pytest.raises(ValueError, match="64 cannot hold each sample 3 times; make it a multiple of 3"):
        steps_per_epoch(100, global_batch=64, repeats=3)


@given(st.integers(1, 65), st.integers(1, 4))
def test_evaluation_shares_hold_each_sample_exactly_once(num_samples, world_size):
    shares = [rank_share(num_samples, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for share in shares for index in share) == list(range(num_samples))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("samples", "global_batch", "world_size", "message"),
    [
        (
            100,
            64,
            3,
            "a global batch of 64 cannot be split equally over 3 processes; use 1 or 2 or 4 .* or 64 processes",
        ),
        (100, 2, 4, "use 1 or 2 processes, or a global batch that 4 divides"),
        (10, 64, 2, "larger than the 10 samples; give at most"),
    ],
)
def test_batches_that_cannot_be_are_refused_with_what_could(samples, global_batch, world_size, message):
    with pytest.raises(ValueError, match=message):
        rank_batches(list(range(samples)), global_batch=global_batch, rank=0, world_size=world_size)
