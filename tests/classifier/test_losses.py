"""The losses: torch's own where they coincide, numbers computed by hand where they do not."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from resnet_core.classifier.losses import LOSSES, binary_cross_entropy_with_logits, soft_cross_entropy

LOG2 = math.log(2)
LESS = "Some targets have less than 1 total probability."
REDUCTIONS = st.sampled_from(["none", "mean", "sum"])


@st.composite
def cases(draw):
    """Logits [N, C, d1, ...] and class indices [N, d1, ...], one weight a class or None."""
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = 10 * torch.randn(shape, generator=generator)
    indices = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    weight = torch.rand(shape[1], generator=generator) + 0.1
    return logits, indices, draw(st.sampled_from([None, weight]))


def one_hot(indices, logits):
    return F.one_hot(indices, logits.shape[1]).movedim(-1, 1).float().contiguous()


def smoothed(indices, logits, by):
    return one_hot(indices, logits) * (1 - by) + by / logits.shape[1]


def per_class(weight, logits):
    """As torch's binary loss takes it: one value a class, broadcast over what follows."""
    return None if weight is None else weight.reshape(-1, *[1] * (logits.ndim - 2))


@settings(max_examples=50, deadline=None)
@given(cases(), REDUCTIONS, st.integers(-1, 3))
def test_soft_cross_entropy_of_indices_is_torchs(case, reduction, ignored):
    logits, indices, weight = case
    options = {"weight": weight, "ignore_index": ignored, "reduction": reduction}
    expected = F.cross_entropy(logits, indices, **options)
    assert_close(soft_cross_entropy(logits, indices, **options), expected, rtol=0, atol=0, equal_nan=True)
    assert_close(soft_cross_entropy(logits, indices, weight), F.cross_entropy(logits, indices, weight), rtol=0, atol=0)


@settings(max_examples=50, deadline=None)
@given(cases(), REDUCTIONS)
def test_soft_cross_entropy_of_one_hot_is_that_of_indices(case, reduction):
    logits, indices, _ = case
    dense = soft_cross_entropy(logits, one_hot(indices, logits), reduction=reduction)
    assert_close(dense, soft_cross_entropy(logits, indices, reduction=reduction))


@settings(max_examples=50, deadline=None)
@given(cases(), REDUCTIONS, st.floats(0.01, 0.9))
def test_soft_cross_entropy_of_smoothed_labels_is_torchs(case, reduction, by):
    logits, indices, weight = case
    dense = smoothed(indices, logits, by)
    assert_close(
        soft_cross_entropy(logits, dense, reduction=reduction),
        F.cross_entropy(logits, indices, reduction=reduction, label_smoothing=by),
        rtol=1e-5,
        atol=1e-5,
    )
    # Of probabilities torch, too, weights the terms and divides by the number of rows.
    assert_close(
        soft_cross_entropy(logits, dense, weight, reduction=reduction),
        F.cross_entropy(logits, dense, weight, reduction=reduction),
        rtol=1e-5,
        atol=1e-5,
    )


@settings(max_examples=50, deadline=None)
@given(cases(), st.data())
def test_rows_of_zeros_do_not_count_in_the_mean(case, data):
    logits, indices, _ = case
    kept = torch.tensor([data.draw(st.booleans()) for _ in indices])
    dense = one_hot(indices, logits)
    dense[~kept] = 0
    if not kept.any():
        with pytest.raises(ValueError, match="must have probability to divide by, got a sum of 0"):
            soft_cross_entropy(logits, dense)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mean = soft_cross_entropy(logits, dense)
    assert [str(warning.message) for warning in caught] == [LESS] * (not kept.all())
    assert_close(mean, F.cross_entropy(logits[kept], indices[kept]), rtol=1e-5, atol=1e-5)


def test_class_weights_scale_dense_terms_and_do_not_divide_their_mean():
    logits, indices, weight = torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 3.0])
    dense = one_hot(indices, logits)
    assert soft_cross_entropy(logits, dense, weight).item() == pytest.approx(2 * LOG2)  # (1 + 3) log 2 / 2
    assert soft_cross_entropy(logits, indices, weight).item() == pytest.approx(LOG2)  # (1 + 3) log 2 / (1 + 3)
    assert soft_cross_entropy(logits, dense, weight, reduction="none").tolist() == pytest.approx([LOG2, 3 * LOG2])


def test_more_than_one_in_total_divides_the_mean_as_well():
    assert soft_cross_entropy(torch.zeros(1, 2), torch.ones(1, 2)).item() == pytest.approx(LOG2)  # 2 log 2 / 2


@pytest.mark.parametrize("loss", [soft_cross_entropy, binary_cross_entropy_with_logits])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 1), (2, 1), ()])
def test_targets_of_neither_shape_are_refused(loss, shape):
    with pytest.raises(RuntimeError, match=r"targets must have the logits' shape \[2, 3\] \(probabilities\)"):
        loss(torch.zeros(2, 3), torch.zeros(shape))


def test_what_does_not_fit_dense_targets_is_said():
    logits, dense = torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])
    with pytest.warns(UserWarning, match="ignore_index is for class indices"):
        soft_cross_entropy(logits, dense, ignore_index=0)
    with pytest.raises(ValueError, match=r"reduction must be one of \['none', 'sum', 'mean'\], got 'average'"):
        soft_cross_entropy(logits, dense, reduction="average")


@settings(max_examples=50, deadline=None)
@given(cases(), REDUCTIONS, st.booleans(), st.booleans())
def test_binary_cross_entropy_is_torchs_of_one_hot_over_the_batch_size(case, reduction, scaled, positive):
    logits, indices, weight = case
    weight = per_class(weight, logits)
    options = {"reduction": reduction, ("pos_weight" if positive else "weight"): weight}
    torchs = F.binary_cross_entropy_with_logits(logits, one_hot(indices, logits), **options)
    expected = torchs / len(logits) if scaled else torchs
    for target in (indices, one_hot(indices, logits), indices.int(), indices.to(torch.uint8)):
        ours = binary_cross_entropy_with_logits(logits, target, **options, scale_by_batch_size=scaled)
        assert_close(ours, expected, rtol=0, atol=0)


@settings(max_examples=50, deadline=None)
@given(cases(), st.floats(0.01, 0.9))
def test_binary_cross_entropy_of_probabilities_is_torchs_over_the_batch_size(case, by):
    logits, indices, _ = case
    dense = smoothed(indices, logits, by)
    expected = F.binary_cross_entropy_with_logits(logits, dense, reduction="sum") / len(logits)
    assert_close(binary_cross_entropy_with_logits(logits, dense), expected, rtol=0, atol=0)


def test_binary_cross_entropy_by_default_is_the_sum_over_classes_and_mean_over_images():
    assert binary_cross_entropy_with_logits(torch.zeros(5, 3), torch.zeros(5).long()).item() == pytest.approx(3 * LOG2)


def test_a_negative_index_is_right_for_no_class():
    logits, indices = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([-100, 1])
    with pytest.warns(UserWarning, match="Negative class indices become rows of zeros"):
        loss = binary_cross_entropy_with_logits(logits, indices, reduction="none", scale_by_batch_size=False)
    no_to_1, no_to_2 = math.log(1 + math.e), math.log(1 + math.e**2)
    assert loss.flatten().tolist() == pytest.approx([no_to_1, no_to_2, LOG2, LOG2])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(2), "class indices must be integers, got torch.float32"),
        (torch.zeros(2, dtype=torch.bool), "class indices must be integers, got torch.bool"),
        (torch.tensor([0, 3]), "class indices must be below the number of classes, 3, got 3"),
    ],
)
def test_what_is_not_an_index_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        binary_cross_entropy_with_logits(torch.zeros(2, 3), target)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_gradients_are_those_of_float64_differences(loss):
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.tensor([0, 3, 1])), logits)
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.full((3, 4), 0.25, dtype=torch.float64)), logits)
