"""Optimizers against torch, the papers in float64, and other libraries; what is decayed, and how fast."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import resnet_core
from resnet_core.train.optimizers import (
    OPTIMIZERS,
    DecoupledSGD,
    Lamb,
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    exempt_from_decay,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)

TEN = [name for name in resnet_core.list_models() if not name.startswith("cifar")]
LRS = [0.02, 0.05, 0.1, 0.08, 0.03]  # a schedule: up, then down
EXEMPT_NORMS = {"decay_norms": False}


def network(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)).to(dtype)


def set_gradients(model, step):
    """The same numbers for each dtype, so that a float64 run sees the same gradients."""
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def train(model, optimizer, lrs=LRS, max_norm=math.inf):
    for step, lr in enumerate(lrs):
        set_gradients(model, step)
        clip_gradients(model.parameters(), max_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def train_by_rule(rule, lrs=LRS):
    """The weights after `rule(weight, gradient, state, lr, step)` was applied to each in float64."""
    model = network(dtype=torch.float64)
    states = [{} for _ in model.parameters()]
    for step, lr in enumerate(lrs):
        set_gradients(model, step)
        for parameter, state in zip(model.parameters(), states, strict=True):
            parameter.data = rule(parameter.data, parameter.grad, state, lr, step)
    return [parameter.detach() for parameter in model.parameters()]


def assert_bitwise(ours, expected):
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def assert_close(ours, expected, rtol):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs_bit_for_bit(nesterov):
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, OptimizerConfig(nesterov=nesterov))
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=nesterov)
    assert_bitwise(train(ours, optimizer), train(theirs, expected))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.875, False), (0.875, True)])
def test_decoupled_sgd_without_decay_is_torchs_sgd_bit_for_bit(momentum, nesterov):
    ours, theirs = network(), network()
    optimizer = DecoupledSGD(ours.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum, nesterov=nesterov)
    assert_bitwise(train(ours, optimizer), train(theirs, expected))
    if momentum:
        assert optimizer.state_dict()["state"].keys() == expected.state_dict()["state"].keys()
        assert all(state.keys() == {"momentum_buffer"} for state in optimizer.state.values())


@settings(deadline=None, max_examples=30)
@given(peak=st.floats(0.01, 4), momentum=st.floats(0, 0.99), weight_decay=st.floats(0, 0.5), nesterov=st.booleans())
def test_decoupled_sgd_is_its_rule_written_out(peak, momentum, weight_decay, nesterov):
    def rule(weight, gradient, state, lr, step):
        velocity = state["v"] = momentum * state.get("v", 0) + gradient
        direction = gradient + momentum * velocity if nesterov else velocity
        return weight * (1 - weight_decay * lr / peak) - lr * direction

    model = network(dtype=torch.float64)
    optimizer = DecoupledSGD(model.parameters(), peak, momentum, weight_decay, nesterov)
    assert_close(train(model, optimizer), train_by_rule(rule), 1e-12)


def per_step_decay(optimizer, weight, steps=400):
    """How much of an idle weight (its gradient is 0) the last of many steps takes away, as a share."""
    for _ in range(steps):
        before = weight.item()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    return 1 - weight.item() / before


def test_the_cards_decay_read_as_coupled_is_16_times_harder():
    """lr 2.048, momentum 0.875, weight decay 5e-4, as the model card says, and read both ways."""

    def idle(make, weight_decay):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        return per_step_decay(make([weight], lr=2.048, momentum=0.875, weight_decay=weight_decay), weight)

    def root(weight_decay, lr=2.048, momentum=0.875):
        """The greater root of z^2 - (1 + momentum - lr * weight_decay) z + momentum: coupled decay for good."""
        middle = (1 + momentum - lr * weight_decay) / 2
        return middle + math.sqrt(middle**2 - momentum)

    decoupled, coupled = idle(DecoupledSGD, 5e-4), idle(torch.optim.SGD, 5e-4)
    nvidia = idle(torch.optim.SGD, 1 / 32768)
    assert decoupled == pytest.approx(5e-4, rel=1e-9)
    assert coupled == pytest.approx(1 - root(5e-4), rel=1e-6)
    # To first order in lr * weight_decay it is lr * weight_decay / (1 - momentum), 16.384 times as much; the rest of
    # the 17.5 is of second order. NVIDIA's coupled 1/32768 is the decoupled 5e-4: exactly, to first order.
    assert round(2.048 * 5e-4 / (1 - 0.875) / 5e-4, 9) == 16.384
    assert coupled / decoupled == pytest.approx(17.46, abs=0.01)
    assert 2.048 / 32768 / (1 - 0.875) == 5e-4
    assert nvidia / decoupled == pytest.approx(1, abs=0.004)


def test_coupled_decay_nears_its_first_order_as_the_learning_rate_falls():
    for lr in (2.048e-1, 2.048e-2):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.875, weight_decay=5e-4)
        assert per_step_decay(optimizer, weight) == pytest.approx(lr * 5e-4 / 0.125, rel=4 * lr * 5e-4 / 0.125**2)


def test_decoupled_decay_follows_the_schedule_and_not_the_learning_rate():
    """Half the peak learning rate halves the decay; ten times the peak leaves it as it is."""
    for peak in (0.2, 2.0):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = DecoupledSGD([weight], lr=peak, weight_decay=0.01)
        for share in (1.0, 0.5, 0.0):
            before = weight.item()
            weight.grad = torch.zeros_like(weight)
            optimizer.param_groups[0]["lr"] = share * peak
            optimizer.step()
            assert weight.item() / before == pytest.approx(1 - 0.01 * share, rel=1e-12)


def lamb_rule(weight_decay, beta1=0.9, beta2=0.999, eps=1e-6):
    """You et al. 2020, algorithm 2, with the identity for its phi; no ratio without decay."""

    def rule(weight, gradient, state, lr, step):
        state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * gradient
        state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * gradient**2
        mean, square = state["m"] / (1 - beta1 ** (step + 1)), state["v"] / (1 - beta2 ** (step + 1))
        update = mean / (square.sqrt() + eps) + weight_decay * weight
        ratio = weight.square().sum().sqrt() / update.square().sum().sqrt() if weight_decay else 1.0
        # A BatchNorm's shift begins at 0, where the ratio is defined as 1.
        return weight - lr * (ratio or 1.0) * update

    return rule


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_lamb_is_its_paper_in_float64(weight_decay):
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        model = network(dtype=dtype)
        optimizer = Lamb(model.parameters(), lr=0.1, weight_decay=weight_decay)
        assert_close(train(model, optimizer), train_by_rule(lamb_rule(weight_decay)), rtol)


def test_lamb_without_decay_is_torchs_adam():
    ours, theirs = network(dtype=torch.float64), network(dtype=torch.float64)
    optimizer = Lamb(ours.parameters(), lr=0.1, weight_decay=0)
    expected = torch.optim.Adam(theirs.parameters(), lr=0.1, eps=1e-6)
    assert_close(train(ours, optimizer), train(theirs, expected), 1e-12)


def test_lambs_first_beta_is_the_momentum():
    (group,) = build_optimizer(network(), OptimizerConfig(name="lamb", momentum=0.95)).param_groups
    assert (group["betas"], group["eps"]) == ((0.95, 0.999), 1e-6)


@pytest.mark.interop
def test_lamb_is_timms():
    timm_optim = pytest.importorskip("timm.optim")
    ours, theirs = network(), network()
    config = OptimizerConfig(name="lamb", lr=0.1, weight_decay=0.02, **EXEMPT_NORMS)
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in parameter_groups(theirs, config)]
    expected = timm_optim.Lamb(groups, lr=0.1, max_grad_norm=1.0)
    assert_close(train(ours, build_optimizer(ours, config), max_norm=1.0), train(theirs, expected), 2e-5)


@pytest.mark.interop
def test_decoupled_sgd_is_composers_bit_for_bit():
    composer_optim = pytest.importorskip("composer.optim", exc_type=ImportError)
    ours, theirs = network(), network()
    settings = {"lr": 0.1, "momentum": 0.875, "weight_decay": 5e-4}
    expected = composer_optim.DecoupledSGDW(theirs.parameters(), **settings)
    assert_bitwise(train(ours, DecoupledSGD(ours.parameters(), **settings)), train(theirs, expected))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_gradient_stays_as_it_is(name):
    model = network()
    optimizer = build_optimizer(model, OptimizerConfig(name=name))
    before = model[0].weight.detach().clone()
    set_gradients(model, 0)
    model[0].weight.grad = None
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    model.zero_grad()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_named_state_continues_bit_for_bit(name):
    config = OptimizerConfig(name=name, weight_decay=0.01, **EXEMPT_NORMS)
    whole, cut, resumed = network(), network(), network(seed=1)
    expected = train(whole, build_optimizer(whole, config), [0.1, 0.05])

    optimizer = build_optimizer(cut, config)
    train(cut, optimizer, [0.1])
    state = {key: value.clone() for key, value in optimizer_tensors(cut, optimizer).items()}
    resumed.load_state_dict(cut.state_dict())
    optimizer = build_optimizer(resumed, config)
    load_optimizer_tensors(resumed, optimizer, state)
    set_gradients(resumed, 1)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    optimizer.step()
    assert_bitwise([parameter.detach() for parameter in resumed.parameters()], expected)


@pytest.mark.parametrize("optimizer_class", [DecoupledSGD, Lamb])
def test_a_closure_is_called_with_gradients_on(optimizer_class):
    weight = nn.Parameter(torch.ones(2))

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer_class([weight], lr=0.1).step(closure) == 2.0
    assert not torch.equal(weight, torch.ones(2))


def on_paper(name):
    """A model without memory for its weights."""
    with torch.device("meta"):
        return resnet_core.get_model(name)


@pytest.mark.parametrize("name", TEN)
def test_all_that_is_no_norm_is_decayed_and_each_parameter_is_in_one_group(name):
    model = on_paper(name)
    names = {parameter: each for each, parameter in model.named_parameters()}
    decayed, exempt = parameter_groups(model, OptimizerConfig(weight_decay=5e-4, **EXEMPT_NORMS))
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (5e-4, 0.0)
    # In a ResNet all that has one dimension is a BatchNorm's, but for the last layer's bias.
    flat = [each for each, parameter in model.named_parameters() if parameter.ndim == 1 and each != "fc.bias"]
    assert [names[parameter] for parameter in exempt["params"]] == flat
    both = decayed["params"] + exempt["params"]
    assert len(both) == len(set(both)) == len(names)


def test_the_exempt_of_resnet50_by_name():
    model = on_paper("resnet50")
    exempt = list(exempt_from_decay(model, OptimizerConfig(**EXEMPT_NORMS)).values())
    blocks = [f"layer{stage}.{block}" for stage, depth in enumerate((3, 4, 6, 3), 1) for block in range(depth)]
    norms = ["bn1"] + [
        f"{block}.{norm}"
        for block in blocks
        for norm in ("bn1", "bn2", "bn3", "downsample.1")
        if norm != "downsample.1" or block.endswith(".0")
    ]
    assert exempt == [f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")]
    missed = [name for name in exempt if "bn" not in name]
    assert missed == [f"layer{stage}.0.downsample.1.{kind}" for stage in (1, 2, 3, 4) for kind in ("weight", "bias")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"decay_norms": False}, ["1.weight", "1.bias"]),
        ({"decay_biases": False}, ["0.bias", "3.bias"]),
        ({"decay_norms": False, "decay_biases": False}, ["0.bias", "1.weight", "1.bias", "3.bias"]),
    ],
)
def test_norms_and_biases_are_exempt_each_by_its_own_option(options, expected):
    assert list(exempt_from_decay(network(), OptimizerConfig(**options)).values()) == expected


def test_each_kind_of_norm_is_one():
    norms = [nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.RMSNorm(2)]
    norms += [nn.InstanceNorm2d(2, affine=True)]
    model = nn.Sequential(*norms)
    assert len(exempt_from_decay(model, OptimizerConfig(**EXEMPT_NORMS))) == len(list(model.parameters()))


def test_what_shares_its_settings_shares_a_group_in_the_models_order():
    model = network()
    for options in ({}, {"decay_norms": False, "weight_decay": 0.0}):
        (group,) = parameter_groups(model, OptimizerConfig(**options))
        assert all(a is b for a, b in zip(group["params"], model.parameters(), strict=True))


def test_a_shared_parameter_is_in_one_group_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    model[1].weight = model[0].weight
    groups = parameter_groups(model, OptimizerConfig(decay_norms=False, decay_biases=False))
    assert [len(group["params"]) for group in groups] == [1, 4]


def test_the_head_learns_faster_and_is_decayed_alike():
    model = network()
    config = OptimizerConfig(name="decoupled_sgd", lr=0.1, weight_decay=0.01, head_lr_factor=10)
    optimizer = build_optimizer(model, config, head=model[3])
    body, head = optimizer.param_groups
    assert [(group["lr"], group["lr_scale"], group["initial_lr"]) for group in (body, head)] == [
        (0.1, 1, 0.1),
        (1.0, 10, 1.0),
    ]
    assert [parameter is own for parameter, own in zip(head["params"], model[3].parameters(), strict=True)] == [
        True
    ] * 2
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.05 * group["lr_scale"]
    optimizer.step()
    assert_bitwise(
        [parameter.detach() for parameter in model.parameters()], [value * (1 - 0.01 * 0.5) for value in before]
    )


def test_a_factor_for_a_head_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match=r"optimizer.head_lr_factor is 10, but this model names no head; leave it at 1"
    ):
        parameter_groups(network(), OptimizerConfig(head_lr_factor=10))


@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_clipped_gradients_keep_their_direction_and_have_the_norm_asked_for(max_norm, seed):
    model = network()
    set_gradients(model, seed)
    before = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()
    norm = clip_gradients(model.parameters(), max_norm)
    after = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).double()
    assert norm.item() == pytest.approx(before.norm().item(), rel=1e-5)
    expected = before * min(1.0, max_norm / before.norm().item())
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=0)


def test_without_a_limit_the_norm_is_returned_and_no_bit_changes():
    model, untouched = network(), network()
    for each in (model, untouched):
        set_gradients(each, 0)
    norm = clip_gradients(model.parameters())
    squares = sum(parameter.grad.double().square().sum().item() for parameter in untouched.parameters())
    assert norm.item() == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert_bitwise(*([parameter.grad for parameter in each.parameters()] for each in (model, untouched)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "decoupled_sg"}, "unknown optimizer 'decoupled_sg'; did you mean decoupled_sgd"),
        ({"lr": 0}, "optimizer.lr must be positive and finite, got 0"),
        ({"lr": math.nan}, "optimizer.lr must be positive and finite, got nan"),
        ({"head_lr_factor": -1}, "optimizer.head_lr_factor must be positive and finite, got -1"),
        ({"momentum": 1}, r"optimizer.momentum must be at least 0 and less than 1, got 1"),
        ({"weight_decay": -1}, "optimizer.weight_decay must be at least 0 and finite, got -1"),
        ({"name": "decoupled_sgd", "weight_decay": 1}, "share of a weight that a step removes .* got 1; 5e-4"),
        ({"nesterov": True, "momentum": 0}, "optimizer.nesterov needs a positive optimizer.momentum, got 0"),
        ({"nesterov": True, "name": "lamb"}, "leave it false for lamb"),
        ({"max_grad_norm": 0}, "optimizer.max_grad_norm must be positive"),
        ({"max_grad_norm": math.nan}, "optimizer.max_grad_norm must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)
