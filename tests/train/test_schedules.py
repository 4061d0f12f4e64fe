"""Learning rates against torch's own schedulers, step by step, and what must hold for all of them."""

import math
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from resnet_core.train.schedules import SHAPES, Schedule, ScheduleConfig

STEPS_PER_EPOCH, EPOCHS, PEAK = 7, 9, 0.3
TOTAL, WARMUP = STEPS_PER_EPOCH * EPOCHS, 2 * STEPS_PER_EPOCH


def rates(peak=PEAK, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS, **options):
    schedule = Schedule(config=ScheduleConfig(**options), peak=peak, steps_per_epoch=steps_per_epoch, epochs=epochs)
    return [schedule(step) for step in range(steps_per_epoch * epochs)]


def torchs(make_scheduler, steps=TOTAL):
    """The learning rate of each step under one of torch's schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    found = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter")  # torch's SequentialLR warns of itself
        scheduler = make_scheduler(optimizer)
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


def warmed_up(rest, start_factor=0.0, epochs=2):
    """torch's linear warm-up and then its `rest`: LinearLR begins at its first step, ours one step before it."""
    steps = epochs * STEPS_PER_EPOCH
    first = start_factor + (1 - start_factor) / steps

    def make(optimizer):
        linear = lr_scheduler.LinearLR(optimizer, start_factor=first, total_iters=steps - 1)
        return lr_scheduler.SequentialLR(optimizer, [linear, rest(optimizer)], milestones=[steps])

    return make


def same(ours, expected):
    assert ours == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("final_lr", [0.0, 0.01])
def test_cosine_is_torchs(final_lr):
    expected = torchs(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL, eta_min=final_lr))
    same(rates(final_lr=final_lr), expected)


@pytest.mark.parametrize("start_factor", [0.0, 0.01, 0.5])
def test_warm_up_and_cosine_are_torchs_in_sequence(start_factor):
    def rest(optimizer):
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - WARMUP, eta_min=0.02)

    ours = rates(warmup_epochs=2, warmup_start_factor=start_factor, final_lr=0.02)
    same(ours, torchs(warmed_up(rest, start_factor)))


def test_milestones_are_torchs_after_warm_up():
    def rest(optimizer):  # SequentialLR counts from the end of warm-up
        at = [epoch * STEPS_PER_EPOCH - WARMUP for epoch in (3, 6)]
        return lr_scheduler.MultiStepLR(optimizer, milestones=at, gamma=0.1)

    ours = rates(name="milestones", milestones=(3, 6), warmup_epochs=2)
    same(ours, torchs(warmed_up(rest)))
    assert ours[6 * STEPS_PER_EPOCH - 1 : 6 * STEPS_PER_EPOCH + 1] == pytest.approx([0.03, 0.003])


def test_constant_is_torchs_after_warm_up():
    def rest(optimizer):
        return lr_scheduler.ConstantLR(optimizer, factor=1)

    same(rates(name="constant", warmup_epochs=2), torchs(warmed_up(rest)))


@pytest.mark.parametrize("final_lr", [0.0, 0.01])
def test_one_cycle_is_torchs_whose_last_step_is_not_taken(final_lr):
    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=PEAK,
            total_steps=TOTAL + 1,
            pct_start=WARMUP / (TOTAL + 1),
            anneal_strategy="linear",
            cycle_momentum=False,
            div_factor=WARMUP,
            final_div_factor=PEAK / WARMUP / final_lr if final_lr else math.inf,
        )

    ours = rates(name="one_cycle", warmup_epochs=2, final_lr=final_lr)
    same(ours, torchs(make))
    assert ours.count(max(ours)) == 1


def test_the_cards_warm_up_of_8_epochs_and_cosine_of_82_fill_its_90():
    """1,281,167 images in batches of 2,048: 625 steps an epoch."""
    card = ScheduleConfig(warmup_epochs=8, t_max_epochs=82)
    schedule = Schedule(config=card, peak=2.048, steps_per_epoch=625, epochs=90)
    to_the_end = Schedule(config=ScheduleConfig(warmup_epochs=8), peak=2.048, steps_per_epoch=625, epochs=90)
    assert [schedule(step) for step in range(90 * 625)] == [to_the_end(step) for step in range(90 * 625)]
    assert schedule(0) == pytest.approx(2.048 / 5000)
    assert schedule(4999) == schedule(5000) == 2.048
    assert schedule(49 * 625) == pytest.approx(1.024)


def test_a_cosine_that_is_over_early_stays_at_its_end():
    ours = rates(warmup_epochs=1, t_max_epochs=3, final_lr=0.01)
    assert ours[4 * STEPS_PER_EPOCH - 1] > 0.01
    assert set(ours[4 * STEPS_PER_EPOCH :]) == {0.01}


def test_resnet110_warms_up_at_a_hundredth_of_the_first_learning_rate_then_jumps():
    ours = rates(
        peak=0.1, name="milestones", milestones=(4, 6), warmup_epochs=1, warmup="constant", warmup_start_factor=0.1
    )
    expected = [0.01] + [0.1] * 3 + [0.01] * 2 + [0.001] * 3
    assert ours == pytest.approx([rate for rate in expected for _ in range(STEPS_PER_EPOCH)])


def test_a_fraction_of_an_epoch_is_rounded_to_steps():
    ours = rates(name="milestones", milestones=(2.5,))
    assert ours.index(min(ours)) == round(2.5 * STEPS_PER_EPOCH)


NAMES = {name: {"milestones": (4.0, 5.0)} if name == "milestones" else {} for name in SHAPES}


@given(
    st.sampled_from(list(NAMES)),
    st.integers(1, 40),
    st.floats(0, 3),
    st.floats(1e-4, 10),
    st.floats(0, 1),
)
def test_each_schedule_climbs_by_step_to_its_peak_and_only_falls_after_it(
    name, steps_per_epoch, warmup_epochs, peak, start_factor
):
    options = {"warmup_epochs": warmup_epochs, "warmup_start_factor": start_factor, **NAMES[name]}
    ours = rates(peak=peak, steps_per_epoch=steps_per_epoch, epochs=6, name=name, **options)
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    up, down = ours[:warmup_steps], ours[warmup_steps:]
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in ours)
    assert down == sorted(down, reverse=True)
    # Each step of warm-up adds the same: no plateau within an epoch, no jump at its end.
    stride = peak * (1 - start_factor) / max(warmup_steps, 1)
    for before, after in pairwise([peak * start_factor, *up]):
        assert after - before == pytest.approx(stride, abs=peak * 1e-9)
    if up:
        assert up[-1] == pytest.approx(peak, rel=1e-12)
    if name != "one_cycle":
        assert down[0] == peak


@given(st.sampled_from(["cosine", "one_cycle"]), st.integers(2, 60), st.floats(0, 0.29))
def test_the_way_down_has_no_jump_and_nears_its_end(name, steps_per_epoch, final_lr):
    ours = rates(steps_per_epoch=steps_per_epoch, name=name, warmup_epochs=1, final_lr=final_lr)
    way = PEAK - final_lr
    steepest = way * (math.pi / 2) / (8 * steps_per_epoch)  # of a cosine; a line is less steep
    down = ours[steps_per_epoch - 1 :]
    assert all(before - after <= steepest * 1.001 for before, after in pairwise(down))
    assert final_lr <= ours[-1] <= final_lr + steepest


def test_a_schedule_travels_to_other_processes():
    schedule = Schedule(config=ScheduleConfig(), peak=PEAK, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cosin"}, "unknown schedule 'cosin'; did you mean cosine"),
        ({"warmup_epochs": -1}, "schedule.warmup_epochs must be at least 0, got -1"),
        ({"warmup_epochs": math.nan}, "schedule.warmup_epochs must be at least 0, got nan"),
        ({"final_lr": -1}, "schedule.final_lr must be at least 0, got -1"),
        ({"warmup": "linaer"}, "schedule.warmup: unknown 'linaer'; did you mean linear"),
        ({"warmup_start_factor": 2}, r"schedule.warmup_start_factor must be in \[0, 1\], got 2"),
        ({"warmup": "constant", "warmup_epochs": 1}, "a constant warm-up at 0 learns nothing"),
        ({"gamma": 0}, r"schedule.gamma must be in \(0, 1\], got 0"),
        ({"name": "milestones", "milestones": (6, 3)}, r"schedule.milestones must be positive and rise, got \[6, 3\]"),
        ({"name": "milestones"}, "schedule.milestones is empty: name the epochs, or choose schedule.name constant"),
        (
            {"milestones": (3,)},
            "schedule.milestones works with schedule.name milestones only and would do nothing for cosine",
        ),
        ({"name": "constant", "final_lr": 0.1}, "final_lr works with schedule.name cosine or one_cycle only and"),
        ({"name": "one_cycle", "t_max_epochs": 3}, "schedule.t_max_epochs works with schedule.name cosine only"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": 9}, r"schedule.warmup_epochs \(9\) must be less than train.epochs \(9\)"),
        ({"name": "milestones", "milestones": (3, 9)}, r"schedule.milestones \(9\) must lie between .* train.epochs"),
        ({"name": "milestones", "milestones": (1,), "warmup_epochs": 2}, r"schedule.milestones \(1\) must lie between"),
        ({"final_lr": 0.3}, r"schedule.final_lr \(0.3\) must be less than optimizer.lr \(0.3\)"),
    ],
)
def test_a_schedule_that_does_not_fit_its_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        rates(**options)
