"""The healthy patients are torchvision's function; each sick one is torchvision with its one mistake made there."""

from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from parity.patients import flat, functional, teaching
from parity.patients.functional import MISTAKES, NEEDS_BOTTLENECK

TINY = (1, 1, 2, 1)
AT = "groups_of_blocks.{stage}.{block}"

# torchvision's module -> the patient's. {n} counts a block's convolutions from 0, {row_after_stem} the flat one's row.
NAMES = {
    functional: {
        "conv1": "stem_conv",
        "bn1": "stem_norm",
        "layer.conv": AT + ".convs.{n}",
        "layer.bn": AT + ".norms.{n}",
        "layer.downsample.0": AT + ".bridge.match_conv",
        "layer.downsample.1": AT + ".bridge.match_norm",
        "fc": "classifier",
    },
    flat: {
        "conv1": "row.0",
        "bn1": "row.1",
        "layer.conv": "row.{row_after_stem}.main.convolve{n}",
        "layer.bn": "row.{row_after_stem}.main.normalize{n}",
        "layer.downsample.0": "row.{row_after_stem}.shortcut.0",
        "layer.downsample.1": "row.{row_after_stem}.shortcut.1",
        "fc": "head",
    },
    teaching: {
        "conv1": "stem.conv",
        "bn1": "stem.bn",
        "layer.conv": "stage{number}.blocks.{block}.body.{n}.conv",
        "layer.bn": "stage{number}.blocks.{block}.body.{n}.bn",
        "layer.downsample.0": "stage{number}.blocks.{block}.skip.conv",
        "layer.downsample.1": "stage{number}.blocks.{block}.skip.bn",
        "fc": "linear",
    },
}


def renamed(state, names, depths):
    """torchvision's state dict under a patient's names."""
    return {f"{patients_name(key.rpartition('.')[0], names, depths)}.{key.rpartition('.')[2]}": state[key]
            for key in state}  # fmt: skip


def patients_name(module, names, depths):
    if not module.startswith("layer"):
        return names[module]
    layer, block, kind, *rest = module.split(".")
    number, block = int(layer[-1]), int(block)
    row_after_stem = 4 + sum(depths[: number - 1]) + block  # conv, norm, ReLU and pool come first
    kind, n = ("downsample." + rest[0], None) if rest else (kind[:-1], int(kind[-1]) - 1)
    return names[f"layer.{kind}"].format(
        stage=number - 1, number=number, block=block, n=n, row_after_stem=row_after_stem
    )


def torchvision_model(depths, bottleneck, **config):
    """torchvision's network of these depths, as yet without weights."""
    with torch.device("meta"):
        return ResNet(**{"block": Bottleneck if bottleneck else BasicBlock, "layers": depths, **config})


def drawn(name, like):
    """A random float64 tensor in place of `like`; of a BatchNorm's, none is what it starts with."""
    if like.dim() > 1:
        return torch.randn(like.shape, dtype=torch.float64) * (2 / like[0].numel()) ** 0.5
    if name.endswith(("bias", "running_mean")):
        return torch.randn(like.shape, dtype=torch.float64) / 5
    return torch.rand(like.shape, dtype=torch.float64) + 0.5 if like.is_floating_point() else torch.tensor(0)


def with_weights(model, known=None):
    """The model with each of the `known` weights that it has by name and shape, and random ones else."""
    torch.manual_seed(0)
    known = known or {}
    loaded = {}
    for name, like in model.state_dict().items():
        agrees = name in known and known[name].shape == like.shape
        loaded[name] = known[name].clone() if agrees else drawn(name, like)
    model.load_state_dict(loaded, assign=True)
    return model


def images(count):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def measured(model, inputs):
    """Logits in evaluation, then in training, and the BatchNorm buffers that training leaves, by name."""
    logits = model.eval()(inputs)
    torch.manual_seed(2)  # for dropout
    trained = model.train()(inputs)
    return {"eval logits": logits, "train logits": trained, **dict(model.named_buffers())}


def differences(found, expected):
    """Largest difference of each two tensors, as a part of the second's largest value."""
    assert found.keys() == expected.keys()
    return {name: ((found[name] - expected[name]).abs().max() / expected[name].abs().max()).item() for name in found}


def patient_and_oracle(build, oracle, names, depths, num_images=2):
    """What the patient computes with the oracle's weights, every one of both sides used, and what the oracle does."""
    with torch.device("meta"):
        patient = build()
    state = {name: tensor.clone() for name, tensor in renamed(oracle.state_dict(), names, depths).items()}
    patient.load_state_dict(state, assign=True)
    expected = measured(oracle, images(num_images))
    logits = {name: expected.pop(name) for name in ("eval logits", "train logits")}
    return measured(patient, images(num_images)), {**logits, **renamed(expected, names, depths)}


@pytest.mark.parametrize(("depths", "bottleneck"), [((2, 2, 2, 2), False), ((3, 4, 6, 3), True)], ids=["18", "50"])
@pytest.mark.parametrize("patients", NAMES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_healthy_patients_equal_torchvision(patients, depths, bottleneck):
    oracle = with_weights(torchvision_model(depths, bottleneck))
    build = partial(patients.build, depths, bottleneck)
    found = differences(*patient_and_oracle(build, oracle, NAMES[patients], depths))
    print(f"largest of {len(found)} differences: {max(found.values())}")
    assert max(found.values()) <= 1e-12, found


@pytest.mark.parametrize(("groups", "width"), [(32, 4), (1, 128)])
def test_functional_patient_has_torchvisions_groups_and_width(groups, width):
    oracle = with_weights(torchvision_model(TINY, True, groups=groups, width_per_group=width))
    build = partial(functional.build, TINY, True, groups=groups, width=width)
    found = differences(*patient_and_oracle(build, oracle, NAMES[functional], TINY))
    assert max(found.values()) <= 1e-12, found


def blocks(model):
    return [block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer]


def projections(model):
    return [block.downsample for block in blocks(model) if block.downsample is not None]


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def set_stride(model, number, stride):
    first = getattr(model, f"layer{number}")[0]
    strided = first.conv2 if hasattr(first, "conv3") else first.conv1
    strided.stride = (stride, stride)
    if first.downsample is not None:
        first.downsample[0].stride = (stride, stride)
    elif stride > 1:  # resnet18's layer1 has none
        channels = strided.in_channels
        first.downsample = nn.Sequential(nn.Conv2d(channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


def stride_on_first_stage_only(model):
    for number, stride in ((1, 2), (2, 1), (3, 1), (4, 1)):
        set_stride(model, number, stride)


def stride_on_first_1x1(model):
    for layer in (model.layer2, model.layer3, model.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)


def pad_before(module, sides, value=0.0):
    module.padding = 0 if isinstance(module, nn.MaxPool2d) else (0, 0)
    module.register_forward_pre_hook(lambda _, inputs: F.pad(inputs[0], sides, value=value))


def same_3x3(model):
    for block in blocks(model):
        for conv in (block.conv1, block.conv2):
            if conv.kernel_size == (3, 3) and conv.stride == (2, 2):
                pad_before(conv, (0, 1, 0, 1))


def replace_modules(**replacements):
    def change(model):
        for name, module in replacements.items():
            setattr(model, name, module)

    return change


def edit_projections(edit):
    def change(model):
        for projection in projections(model):
            edit(projection)

    return change


def pool_before(projection):
    stride, projection[0].stride = projection[0].stride, (1, 1)
    if stride == (2, 2):
        projection.register_forward_pre_hook(lambda _, inputs: F.avg_pool2d(inputs[0], 2, 2))


def project_always(model):
    for block in blocks(model):
        if block.downsample is None:
            channels = block.conv1.in_channels
            block.downsample = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


class OptionA(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.stride, self.outputs = conv.stride[0], conv.out_channels

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        zeros = x.new_zeros(x.shape[0], self.outputs - x.shape[1], *x.shape[2:])
        return torch.cat([x, zeros], dim=1)


def option_a(model):
    for block in blocks(model):
        if block.downsample is not None:
            block.downsample = OptionA(block.downsample[0])


def bias_everywhere(model):
    for conv in convolutions(model):
        conv.bias = nn.Parameter(torch.randn(conv.out_channels))


def layers_of(block):
    return [(getattr(block, f"conv{i}"), f"bn{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]


def joined(join, first=F.relu):
    """Every block's forward written anew: `first` after its first norm, `join` of branch and shortcut at its end."""

    def forward(block, x):
        branch = x
        for activation, (conv, norm) in zip((lambda x: x, first, F.relu), layers_of(block), strict=False):
            branch = getattr(block, norm)(conv(activation(branch)))
        return join(branch, block.downsample(x) if block.downsample is not None else x)

    return partial(rewrite, forward)


def rewrite(forward, model):
    for block in blocks(model):
        block.forward = partial(forward, block)


def pre_activated(model):
    for block in blocks(model):
        for conv, norm in layers_of(block):
            setattr(block, norm, nn.BatchNorm2d(conv.in_channels))
        if block.downsample is not None:
            block.downsample = block.downsample[:1]

    def forward(block, x):
        branch = x
        for conv, norm in layers_of(block):
            branch = conv(F.relu(getattr(block, norm)(branch)))
        return branch + (block.downsample(x) if block.downsample is not None else x)

    rewrite(forward, model)


def last_stage_not_wider(model):
    block, depth = type(model.layer4[0]), len(model.layer4)
    model.inplanes = 256 * block.expansion
    model.layer4 = model._make_layer(block, 256, depth, stride=2)
    model.fc = nn.Linear(256 * block.expansion, 1000)


# What torchvision's network becomes by each mistake: other arguments of its constructor, or an edit of the built model.
ARGUMENTS = {
    "BatchNorm eps 1e-3": {"norm_layer": partial(nn.BatchNorm2d, eps=1e-3)},
    "BatchNorm eps 1.001e-5": {"norm_layer": partial(nn.BatchNorm2d, eps=1.001e-5)},
    "BatchNorm momentum 0.9": {"norm_layer": partial(nn.BatchNorm2d, momentum=0.9)},
    "wrong groups": {"groups": 2, "width_per_group": 32},
    "width doubled": {"width_per_group": 128},
    "expansion 2": {"block": type("Narrow", (Bottleneck,), {"expansion": 2})},
    "one block too many in layer3": {"layers": (1, 1, 3, 1)},
    "one block too few in layer3": {"layers": (1, 1, 1, 1)},
}
EDITS = {
    "stride on the first 1x1": stride_on_first_1x1,
    "stride 2 on the first stage only": stride_on_first_stage_only,
    "no stride in layer2": lambda model: set_stride(model, 2, 1),
    "no stride in layer3": lambda model: set_stride(model, 3, 1),
    "no stride in layer4": lambda model: set_stride(model, 4, 1),
    "SAME padding in the stem": lambda model: pad_before(model.conv1, (2, 3, 2, 3)),
    "SAME padding in the max-pool": lambda model: pad_before(model.maxpool, (0, 1, 0, 1), float("-inf")),
    "SAME padding in the strided 3x3": same_3x3,
    "no max-pool": replace_modules(maxpool=nn.Identity()),
    "2x2 max-pool": replace_modules(maxpool=nn.MaxPool2d(2)),
    "average pool in the stem": replace_modules(maxpool=nn.AvgPool2d(3, 2, 1)),
    "no stem ReLU": replace_modules(relu=nn.Identity()),
    "no stem BatchNorm": replace_modules(bn1=nn.Identity()),
    "3x3 stem": lambda model: setattr(model, "conv1", nn.Conv2d(3, 64, 3, 2, 1, bias=False)),
    "ReLU before the addition": joined(lambda branch, shortcut: F.relu(branch) + shortcut),
    "no ReLU after the addition": joined(lambda branch, shortcut: branch + shortcut),
    "no ReLU inside the block": joined(lambda branch, shortcut: F.relu(branch + shortcut), first=lambda x: x),
    "shortcut halved": joined(lambda branch, shortcut: F.relu(branch + shortcut / 2)),
    "branch and shortcut averaged": joined(lambda branch, shortcut: F.relu(branch / 2 + shortcut / 2)),
    "pre-activation order": pre_activated,
    "last stage not wider": last_stage_not_wider,
    "no BatchNorm in the shortcut": edit_projections(lambda projection: projection.pop(1)),
    "projection on every block": project_always,
    "average-pool shortcut": edit_projections(pool_before),
    "identity shortcut without projection": option_a,
    "ReLU on the projected shortcut": edit_projections(lambda projection: projection.append(nn.ReLU())),
    "biased convolutions": bias_everywhere,
    "dropout before the head": lambda model: model.fc.register_forward_pre_hook(
        lambda head, inputs: F.dropout(inputs[0], 0.5, head.training)
    ),
    "max-pool at the head": replace_modules(avgpool=nn.AdaptiveMaxPool2d(1)),
    "softmax in the output": lambda model: model.register_forward_hook(lambda _, inputs, logits: logits.softmax(1)),
}
# The rest change the logits in evaluation.
UNSEEN_IN_EVALUATION = {"BatchNorm momentum 0.9": {"buffers"}, "dropout before the head": {"train logits"}}

CASES = [(name, kind) for name in MISTAKES for kind in (False, True) if kind or name not in NEEDS_BOTTLENECK]
every_mistake = pytest.mark.parametrize(
    ("mistake", "bottleneck"), CASES, ids=[f"{name} {'bottleneck' if kind else 'basic'}" for name, kind in CASES]
)


@cache
def healthy(bottleneck):
    """torchvision's weights, and what the healthy patient computes with them."""
    oracle = with_weights(torchvision_model(TINY, bottleneck))
    weights = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    build = partial(functional.build, TINY, bottleneck)
    return weights, patient_and_oracle(build, oracle, NAMES[functional], TINY, num_images=1)[0]


@cache
def sick(mistake, bottleneck):
    """What the sick patient and a sick torchvision compute, with the healthy one's weights where shapes agree."""
    arguments = ARGUMENTS.get(mistake, {})
    oracle = torchvision_model(TINY, bottleneck, **arguments)
    with torch.device("meta"):
        EDITS.get(mistake, lambda model: None)(oracle)
    oracle = with_weights(oracle, healthy(bottleneck)[0])
    build = partial(functional.build, TINY, bottleneck, mistake)
    return patient_and_oracle(build, oracle, NAMES[functional], arguments.get("layers", TINY), num_images=1)


def test_every_mistake_is_known_to_the_oracle():
    assert sorted([*ARGUMENTS, *EDITS]) == sorted(MISTAKES)


@every_mistake
def test_sick_patient_equals_torchvision_with_that_mistake(mistake, bottleneck):
    found = differences(*sick(mistake, bottleneck))
    assert max(found.values()) <= 1e-12, found


@every_mistake
def test_every_mistake_changes_the_function(mistake, bottleneck):
    found, (_, expected) = sick(mistake, bottleneck)[0], healthy(bottleneck)
    shared = {name for name in found.keys() & expected if found[name].shape == expected[name].shape}
    apart = differences({name: found[name] for name in shared}, {name: expected[name] for name in shared})
    changed = {name if "logits" in name else "buffers" for name in shared if apart[name] > 1e-9}
    if mistake in UNSEEN_IN_EVALUATION:
        assert changed == UNSEEN_IN_EVALUATION[mistake]
    else:
        assert "eval logits" in changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mistake": "no hope"}, "one of MISTAKES, got 'no hope'"),
        ({"mistake": "width doubled", "bottleneck": False}, "'width doubled' is a bottleneck's mistake"),
        ({"mistake": "one block too few in layer3", "depths": (1, 1, 1, 1)}, "at least 2 blocks"),
    ],
)
def test_mistakes_that_cannot_be_planted_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        functional.build(**arguments)
