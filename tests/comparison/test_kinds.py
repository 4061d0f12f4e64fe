"""Layers that people write by hand, and other things that torch's own modules do not do: each is called what it is."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.drop_in import images as random_images
from resnet_core.comparison.compare import compare
from resnet_core.comparison.diagnosis import Examined, diagnose
from resnet_core.comparison.references import complete, nearest
from resnet_core.models.resnet import BasicBlock, Bottleneck, ResNet

images = partial(random_images, size=48)


def tiny(block=BasicBlock, **config):
    torch.manual_seed(0)
    return ResNet(block, [1, 1, 1, 1], num_classes=10, **config)


def with_blocks(change, network=None):
    """A network after a change of each block."""
    network = network or tiny()
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        change(stage[0])
    return network


class Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class Moments(nn.Module):
    """Normalises over the batch, by hand, with a shift and a scale that learn."""

    def __init__(self, channels):
        super().__init__()
        self.gain, self.shift = (nn.Parameter(torch.rand(1, channels, 1, 1)) for _ in range(2))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x):
        mean, var = self.mean, self.var
        if self.training:
            mean = x.mean((0, 2, 3))
            var = (x - mean[:, None, None]).square().mean((0, 2, 3))
        x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
        return x * self.gain + self.shift


class OverChannels(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RootMeanSquare(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x):
        return x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * self.gain


class Fixed(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("gain", torch.rand(channels, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(channels, 1, 1))

    def forward(self, x):
        return x * self.gain + self.shift


class Groups(nn.Module):
    """A grouped convolution as one for each part of the channels."""

    def __init__(self, conv, groups):
        super().__init__()
        width = conv.in_channels // groups
        self.parts = nn.ModuleList(nn.Conv2d(width, width, 3, conv.stride, 1, bias=False) for _ in range(groups))

    def forward(self, x):
        return torch.cat([part(x) for part, x in zip(self.parts, x.chunk(len(self.parts), 1), strict=True)], 1)


class Product(nn.Module):
    def __init__(self, rows, columns, form):
        super().__init__()
        self.matrix, self.form = nn.Parameter(torch.randn(rows, columns) / columns**0.5), form

    def forward(self, x):
        return torch.einsum(self.form, self.matrix, x)


class Joined(nn.Module):
    """A block whose branch and shortcut are joined by another function."""

    def __init__(self, block, join):
        super().__init__()
        self.block, self.join = block, join

    def forward(self, x):
        block = self.block
        y = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        return F.relu(self.join(y, block.downsample(x)))


class Unfolded(nn.Conv2d):
    def forward(self, x):
        columns = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        return (self.weight.flatten(1) @ columns).view(len(x), -1, x.shape[2], x.shape[3])


class AsMatrix(nn.Module):
    """A convolution whose kernel is kept as a matrix."""

    def __init__(self, before, after, kernel, stride, padding):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(after, before * kernel * kernel) / before)
        self.form = {"kernel_size": kernel, "stride": stride, "padding": padding}

    def forward(self, x):
        x_long = torch.einsum("oc,bcn->bon", self.matrix, F.unfold(x, **self.form))
        height = (x.shape[2] + 2 * self.form["padding"] - self.form["kernel_size"]) // self.form["stride"] + 1
        return x_long.unflatten(2, (height, -1))


class Parts(nn.Module):
    """Half of the channels normalised by image, half by batch."""

    def __init__(self, norm):
        super().__init__()
        self.half = norm.num_features // 2
        self.one, self.two = nn.InstanceNorm2d(self.half, affine=True), nn.BatchNorm2d(self.half)

    def forward(self, x):
        one, two = x.split(self.half, 1)
        return torch.cat([self.one(one), self.two(two)], 1)


class Late(nn.Module):
    """A block whose shortcut begins behind its first convolution."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        x = F.relu(self.block.bn1(self.block.conv1(x)))
        return F.relu(self.block.bn2(self.block.conv2(x)) + x)


class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


class Heads(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.one, self.two = nn.Linear(512, 4), nn.Linear(512, 6)

    def forward(self, x):
        return torch.cat([self.one(x), self.two(x)], 1)


class Gate(nn.Module):
    """Factors for the channels from a convolution over their means, as in ECA."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        means = x.mean((2, 3))[:, None]
        return x * torch.sigmoid(self.conv(means)).transpose(1, 2)[..., None].expand_as(x)


class TwoGates(nn.Module):
    """Factors for the channels, then for the pixels, as in CBAM."""

    def __init__(self, channels):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.pixels = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x):
        pools = [
            self.excite(F.relu(self.squeeze(pool(x, 1)))) for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
        ]
        x = x * torch.sigmoid(pools[0] + pools[1])
        return x * torch.sigmoid(self.pixels(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


class GeneralisedMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        x = F.avg_pool2d(x.clamp(min=1e-6).pow(self.p), (x.shape[2], x.shape[3]))
        return x.pow(1 / self.p)


class Cosine(nn.Linear):
    """Similarities with the classes, ten times as large."""

    def forward(self, x):
        return 10 * (x / x.norm(dim=1, keepdim=True)) @ F.normalize(self.weight).t()


class Plus(nn.Module):
    """Adds numbers that learn: one for each channel, or a single one."""

    def __init__(self, *shape):
        super().__init__()
        self.values = nn.Parameter(torch.rand(shape))

    def forward(self, x):
        return x + self.values


class OutputsLast(nn.Module):
    """A convolution whose kernel is kept as height, width, inputs, outputs, as in TensorFlow; a matrix for pixels."""

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.detach()
        self.kernel = nn.Parameter(weight.permute(2, 3, 1, 0).contiguous() if weight.dim() == 4 else weight.t().clone())
        self.bias, self.form = layer.bias, {name: getattr(layer, name, 0) for name in ("stride", "padding")}

    def forward(self, x):
        if self.kernel.dim() == 4:
            return F.conv2d(x, self.kernel.permute(3, 2, 0, 1), **self.form)
        return x @ self.kernel + self.bias


class WithCoordinates(nn.Conv2d):
    def forward(self, x):
        rows = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1).expand(len(x), 1, -1, x.shape[3])
        return super().forward(torch.cat([x, rows], 1))


class Rearranged(nn.Module):
    """A block with its second norm behind the addition, or each norm behind its activation."""

    def __init__(self, block, late):
        super().__init__()
        self.block, self.late = block, late
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.downsample = block.downsample or nn.Identity()

    def forward(self, x):
        if self.late:
            return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))) + self.downsample(x)))
        return self.bn2(F.relu(self.conv2(self.bn1(F.relu(self.conv1(x)))))) + self.downsample(x)


def rearranged(late):
    network = tiny()
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        stage[0] = Rearranged(stage[0], late)
    return network


def in_a_list(block):
    layers = [block.conv2]
    block.conv2 = Does(lambda self, x: layers[0](x))


def separable(conv):
    depthwise = nn.Conv2d(conv.in_channels, conv.in_channels, 3, conv.stride, 1, groups=conv.in_channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False))


def edited(block=BasicBlock, **layers):
    network = tiny(block)
    for name, layer in layers.items():
        setattr(network, name, layer)
    return network


def two_convolutions():
    network = tiny()
    narrow = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
    network.conv1 = nn.Sequential(*narrow, nn.Conv2d(32, 64, 3, 1, 1, bias=False))
    return network


def with_row(stage, make):
    network = tiny()
    in_place_of("0", make)(getattr(network, stage))
    return network


def at(name, *layers):
    """A function that puts these layers behind the module of this name."""

    def change(module):
        setattr(module, name, nn.Sequential(getattr(module, name), *layers))

    return change


def in_place_of(name, make):
    def change(module):
        setattr(module, name, make(getattr(module, name)))
        return module

    return change


def images_through(function):
    return nn.Sequential(Does(lambda self, x: function(x)), tiny())


def in_training(change):
    return Does(lambda self, x: change(x) if self.training else x)


def squares(self, x):
    """The pixels of each square of 2 as channels."""
    n, channels, height, width = x.shape
    x = x.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, 4 * channels, height // 2, width // 2)


def of_squares(layer):
    return edited(conv1=nn.Sequential(layer, nn.Conv2d(12, 64, 3, 1, 1, bias=False)))


def three_convolutions():
    network = tiny()
    at("bn1", nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256))(network.layer3[0])
    return network


def with_numbers(block):
    """A block as Fixup has it: numbers in place of norms."""
    block.conv1 = nn.Sequential(Plus(1), block.conv1, Plus(1))
    block.bn1, block.bn2 = nn.Identity(), Plus(1)
    if isinstance(block.downsample, nn.Sequential):
        block.downsample[1] = nn.Identity()


def pooled_stride(block):
    if isinstance(block.downsample, nn.Sequential):
        block.conv1.stride = (1, 1)
        at("conv1", nn.AvgPool2d(2, ceil_mode=True))(block)


def copied_channels(block):
    if isinstance(block.downsample, nn.Sequential):
        block.downsample = Does(lambda self, x: x[:, :, ::2, ::2].repeat(1, 2, 1, 1))


def unexpanded():
    network = tiny(Bottleneck)
    network.layer1[0] = Bottleneck(64, 16, stride=1, downsample=None)
    network.layer1[0].conv1, network.layer1[0].bn1 = nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64)
    network.layer1[0].conv2, network.layer1[0].bn2 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
    network.layer1[0].conv3 = nn.Conv2d(64, 64, 1, bias=False)
    network.layer2[0].conv1 = nn.Conv2d(64, 128, 1, bias=False)
    network.layer2[0].downsample[0] = nn.Conv2d(64, 512, 1, 2, bias=False)
    return network


def blurred():
    network, weight = tiny(), torch.ones(64, 1, 3, 3) / 9
    blur = Does(lambda self, x: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight.to(x), stride=2, groups=64))
    network.maxpool = nn.Sequential(nn.MaxPool2d(3, 1, 1), blur)
    return network


def joined(stage, join):
    network = tiny()
    layer = getattr(network, stage)
    layer[0] = Joined(layer[0], join)
    return network


def pointwise(conv):
    return Product(conv.out_channels, conv.in_channels, "oc,bchw->bohw")


def of_pixels(conv):
    layer = Does(lambda self, x: self.linear(x.movedim(1, -1)).permute(0, 3, 1, 2))
    layer.linear = nn.Linear(conv.in_channels, conv.out_channels, bias=False)
    return layer


SCALED = in_training(lambda x: x * (torch.rand(len(x), 1, 1, 1) > 0.2).float() / 0.8)
KINDS = {
    "norm by hand": (partial(tiny, norm_layer=Moments), ("norm by hand instead of BatchNorm",)),
    "channels' LayerNorm": (partial(tiny, norm_layer=OverChannels), ("LayerNorm over channels instead of BatchNorm",)),
    "root mean square": (partial(tiny, norm_layer=RootMeanSquare), ("norm by hand instead of BatchNorm",)),
    "fixed": (partial(tiny, norm_layer=Fixed), ("fixed scale and shift instead of BatchNorm",)),
    "stochastic depth": (lambda: with_blocks(at("bn2", SCALED)), ("stochastic depth",)),
    "stochastic depth and dropout": (
        lambda: with_blocks(at("bn2", SCALED), edited(fc=nn.Sequential(nn.Dropout(0.3), nn.Linear(512, 10)))),
        ("dropout 0.3 before the head", "stochastic depth"),
    ),
    "one gate": (lambda: with_blocks(lambda block: at("bn2", Gate())(block)), ("efficient channel attention",)),
    "two gates": (
        lambda: with_blocks(lambda block: at("bn2", TwoGates(block.bn2.num_features))(block)),
        ("channel attention by average and max pools", "spatial attention"),
    ),
    "generalised mean": (lambda: edited(avgpool=GeneralisedMean()), ("GeM-pool at the head",)),
    "coordinates": (
        lambda: edited(conv1=WithCoordinates(4, 64, 7, 2, 3, bias=False)),
        ("constant channels (1) beside the images, as in CoordConv",),
    ),
    "a pool as large as the map": (
        lambda: edited(avgpool=Does(lambda self, x: F.avg_pool2d(x, x.shape[2:])), relu=nn.Identity()),
        ("no stem ReLU",),
    ),
    "norm behind the addition": (partial(rearranged, late=True), ("BatchNorm after the addition",)),
    "norms behind activations": (
        partial(rearranged, late=False),
        ("BatchNorm after ReLU behind the first convolution", "ReLU before the addition"),
    ),
    "fixed, with bottlenecks": (
        partial(tiny, Bottleneck, norm_layer=Fixed),
        ("fixed scale and shift instead of BatchNorm",),
    ),
    "noise": (
        lambda: nn.Sequential(in_training(lambda x: x + torch.randn_like(x)), tiny()),
        ("random noise on the images",),
    ),
    "computed weights": (
        lambda: with_blocks(lambda block: nn.utils.parametrizations.weight_norm(block.conv1)),
        ("convolutions with computed weights at the first convolution of each block",),
    ),
    "ReLU by hand": (lambda: in_place_of("relu", lambda relu: Does(lambda self, x: x * (x > 0)))(tiny()), ()),
    "SiLU by hand": (
        lambda: in_place_of("relu", lambda relu: Does(lambda self, x: x * x.sigmoid()))(tiny()),
        ("SiLU instead of ReLU in the stem",),
    ),
    "permuted pool": (
        lambda: in_place_of(
            "avgpool", lambda pool: Does(lambda self, x: x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)[..., None, None])
        )(tiny()),
        (),
    ),
    "one side, then the other": (
        lambda: in_place_of("avgpool", lambda pool: Does(lambda self, x: x.mean(3).mean(2)))(tiny()),
        (),
    ),
    "einsum": (
        lambda: with_blocks(in_place_of("conv3", pointwise), tiny(Bottleneck)),
        (),
    ),
    "linear layers of pixels": (
        lambda: with_blocks(in_place_of("conv3", of_pixels), edited(Bottleneck, relu=nn.Identity())),
        ("no stem ReLU",),
    ),
    "groups": (
        lambda: with_blocks(in_place_of("conv2", partial(Groups, groups=4)), tiny(Bottleneck)),
        ("4 groups in the 3x3",),
    ),
    "two pools": (
        lambda: in_place_of(
            "avgpool", lambda pool: Does(lambda self, x: torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))
        )(in_place_of("fc", lambda fc: nn.Linear(1024, 10))(tiny())),
        ("average and max-pool at the head",),
    ),
    "maximum": (lambda: joined("layer3", torch.maximum), ("maximum instead of the addition in layer3",)),
    "difference": (lambda: joined("layer2", torch.sub), ("difference instead of the addition in layer2",)),
    "blur": (blurred, ("max-pool with stride 1", "fixed filter 3x3 stride 2 too many in the stem")),
    "BGR": (
        lambda: images_through(lambda x: x[:, [2, 1, 0]] / 255),
        ("the images' channels in the order (2, 1, 0)", "normalised input"),
    ),
    "two convolutions": (two_convolutions, ("deep stem of two 3x3",)),
    "ReLU, then norm": (lambda: edited(bn1=nn.ReLU(), relu=nn.BatchNorm2d(64)), ("ReLU before the stem's norm",)),
    "pool, then norm": (
        lambda: edited(
            bn1=nn.MaxPool2d(3, 2, 1), relu=nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()), maxpool=nn.Identity()
        ),
        ("max pool before the stem's norm",),
    ),
    "learned activation": (
        lambda: edited(relu=Swish()),
        ("activation by hand instead of ReLU in the stem",),
    ),
    "random slope": (lambda: edited(relu=nn.RReLU()), ("RReLU instead of ReLU in the stem",)),
    "unfolded": (
        lambda: with_blocks(
            in_place_of("conv2", lambda conv: Unfolded(conv.in_channels, conv.out_channels, 3, 1, 1, bias=False))
        ),
        (),
    ),
    "separable": (
        lambda: with_blocks(in_place_of("conv1", separable)),
        ("depthwise separable convolutions at the first convolution of each block",),
    ),
    "parts": (
        lambda: with_blocks(in_place_of("bn2", Parts)),
        ("BatchNorm and InstanceNorm side by side instead of BatchNorm at the second convolution of each block",),
    ),
    "late shortcut": (lambda: with_row("layer3", Late), ("shortcut from behind the first convolution in layer3",)),
    "two heads": (lambda: in_place_of("fc", Heads)(tiny()), ("head of 2 linear layers side by side",)),
    "norm at the end": (
        lambda: edited(fc=nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 10))),
        ("LayerNorm before the head's linear layer",),
    ),
    "convolution at the end": (
        lambda: edited(avgpool=nn.Sequential(nn.Conv2d(512, 10, 1), nn.AdaptiveAvgPool2d(1)), fc=nn.Identity()),
        ("1x1 convolution before the head's pool, in place of the linear layer",),
    ),
    "plain list": (
        lambda: with_blocks(in_a_list),
        ("convolutions that no module holds at the second convolution of each block",),
    ),
    "space to depth": (
        lambda: of_squares(nn.PixelUnshuffle(2)),
        ("space to depth by 2 in the stem", "3x3 stem of stride 1"),
    ),
    "space to depth by hand": (
        lambda: of_squares(Does(squares)),
        ("space to depth by 2 in the stem", "3x3 stem of stride 1"),
    ),
    "slices as channels": (
        lambda: of_squares(
            Does(lambda self, x: torch.cat([x[..., i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], 1))
        ),
        ("space to depth by 2 in the stem", "3x3 stem of stride 1"),
    ),
    "cosines": (
        lambda: edited(fc=Cosine(512, 10, bias=False)),
        (
            "L2 normalisation before the head's linear layer",
            "scale by 10 in the head",
            "head without bias",
            "head with a computed weight",
        ),
    ),
    "numbers": (
        lambda: with_blocks(with_numbers, edited(bn1=Plus(1))),
        ("learned numbers added", "no BatchNorm"),
    ),
    "biases by hand": (
        lambda: with_blocks(lambda block: at("conv1", Plus(block.conv1.out_channels, 1, 1))(block)),
        ("biased convolutions at the first convolution of each block",),
    ),
    "sum of pools": (
        lambda: edited(avgpool=Does(lambda self, x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1))),
        ("average plus max-pool at the head",),
    ),
    "pool to 2x2": (
        lambda: edited(avgpool=nn.AdaptiveAvgPool2d(2), fc=nn.Linear(2048, 10)),
        ("pool to 2x2 pixels at the head",),
    ),
    "mean of all batches": (
        partial(tiny, norm_layer=partial(nn.BatchNorm2d, momentum=None)),
        ("BatchNorm momentum None",),
    ),
    "pools for strides": (lambda: with_blocks(pooled_stride), ("average pool in place of the stride",)),
    "three convolutions": (three_convolutions, ("3 convolutions in the block instead of 2 in layer3",)),
    "copies of the channels": (lambda: with_blocks(copied_channels), ("copies of the channels without projection",)),
    "unexpanded first stage": (unexpanded, ("expansion 1 in layer1", "no projection in layer1")),
    "three stages": (
        lambda: edited(layer4=nn.Identity(), relu=nn.Identity(), fc=nn.Linear(256, 10)),
        ("no stem ReLU", "no layer4"),
    ),
    "resized": (lambda: images_through(lambda x: F.interpolate(x, size=(40, 40))), ("images resized",)),
}


BOTTLENECKS = ("einsum", "groups", "fixed, with bottlenecks", "linear layers of pixels", "unexpanded first stage")


@pytest.fixture(scope="module")
def references():
    return {block: Examined(tiny(block), images()) for block in (BasicBlock, Bottleneck)}


@pytest.mark.parametrize("name", KINDS)
def test_a_layer_is_called_what_it_computes(name, references):
    build, mistakes = KINDS[name]
    diagnosis = diagnose(build(), references[Bottleneck if name in BOTTLENECKS else BasicBlock], images())
    assert diagnosis.mistakes == mistakes, diagnosis


def test_ways_that_cross_are_said_to(references):
    def dense(self, x):
        y = self.one(x)
        z = self.two(y) + x
        return self.three(z) + y

    patient = tiny()
    patient.layer1 = Does(dense)
    for name in ("one", "two", "three"):
        setattr(patient.layer1, name, nn.Conv2d(64, 64, 3, padding=1))
    cause = compare(patient, tiny(), images(), rungs=["logits"]).likely_cause
    assert cause.startswith("unknown: the ways that part at layer1.one (test_kinds.py:")
    assert "cross each other" in cause


def test_a_shortcut_around_blocks_is_said_to_be_one():
    patient = tiny()
    patient.layer1 = Does(lambda self, x: self.block(x) + x)
    patient.layer1.block = tiny().layer1
    cause = compare(patient, tiny(), images(), rungs=["logits"]).likely_cause
    assert cause.startswith("unknown: the shortcut that ends at layer1 (test_kinds.py:")


def test_another_output_in_training_is_said():
    patient = nn.Sequential(tiny(), Does(lambda self, x: (x, x) if self.training else x))
    result = compare(patient, tiny(), images(), rungs=["logits", "training logits"])
    assert "it returns a tuple in training, not a tensor of logits" in result.rungs[-1].detail
    assert result.mistakes == ("a tuple returned in training",)
    assert result.differences[0].path == "0.fc"


def test_the_statistics_of_an_auxiliary_head_are_its_own():
    class WithHead(ResNet):
        def forward(self, x):
            features = self.layer3(self.layer2(self.layer1(self.maxpool(self.bn1(self.conv1(x))))))
            logits = self.fc(self.layer4(features).mean((2, 3)))
            return {"logits": logits, "beside": self.beside(features)} if self.training else logits

    patient = WithHead(BasicBlock, [1, 1, 1, 1], num_classes=10)
    patient.beside = nn.Sequential(nn.Conv2d(256, 8, 1), nn.BatchNorm2d(8))
    result = compare(patient, tiny(), images(), rungs=["logits"])
    assert result.mistakes == ("no stem ReLU", "a dict returned in training")


def test_where_neither_network_is_healthy_both_are_judged():
    first, second = (
        tiny(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)),
        tiny(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)),
    )
    first.relu, second.maxpool = nn.Identity(), nn.MaxPool2d(2)
    result = compare(first, second, images(), rungs=["logits"])
    assert result.likely_cause == (
        "neither network is a healthy ResNet: beside it, the first has BatchNorm eps 1e-3 and no stem ReLU, and the "
        "second has BatchNorm eps 1e-3 and 2x2 max-pool"
    )
    assert [(each.network, each.name) for each in result.differences] == [
        ("first", "no stem ReLU"),
        ("second", "2x2 max-pool"),
    ]
    assert result.reference.endswith("the healthy one that is nearest")


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = tiny(norm_layer=partial(nn.BatchNorm2d, eps=1e-3))

    def forward(self, x):
        network = self.network
        with torch.no_grad():
            x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        x = network.layer4(network.layer3(network.layer2(network.layer1(x))).detach())
        return network.fc(network.avgpool(x).flatten(1))


def test_what_keeps_a_gradient_back_is_a_difference_with_its_line():
    patient = Detached()
    patient.network.layer4[0].bn2.bias.requires_grad_(False)
    result = compare(patient, tiny(), images(), rungs=["logits", "loss and gradients"])
    assert result.mistakes == (
        "BatchNorm eps 1e-3",
        "requires_grad=False",
        "no gradient because of torch.no_grad()",
        "no gradient because of detach",
    )
    lines = [Path(__file__).read_text().splitlines()[each.line - 1] for each in result.differences[2:]]
    assert "torch.no_grad()" in lines[0]
    assert ".detach()" in lines[1]
    assert "conv1 has no gradient because of torch.no_grad()" in result.likely_cause


def test_convolutions_as_products_of_matrices_are_equal_to_convolutions():
    def product(conv):
        return AsMatrix(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0])

    patient = with_blocks(in_place_of("conv2", product), with_blocks(in_place_of("conv1", product)))
    result = compare(patient, rungs=["names and shapes", "activations", "logits", "loss and gradients"])
    assert result, result
    assert result.reference.startswith("ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)")


def test_statistics_that_are_kept_without_gradient_are_no_difference():
    class Kept(Moments):
        def forward(self, x):
            if self.training:
                with torch.no_grad():
                    self.mean.lerp_(x.mean((0, 2, 3)), 0.1)
            return super().forward(x)

    result = compare(tiny(norm_layer=Kept), tiny(), images(), rungs=["logits"])
    assert result.mistakes == ("norm by hand instead of BatchNorm",)
    assert "gradient" not in result.likely_cause


def test_weights_that_are_kept_transposed_are_equal():
    def change(block):
        block.conv1, block.conv2 = OutputsLast(block.conv1), OutputsLast(block.conv2)

    patient = with_blocks(change, edited(fc=OutputsLast(tiny().fc)))
    rungs = ["names and shapes", "activations", "logits", "loss and gradients", "3 optimizer steps"]
    result = compare(patient, rungs=rungs)
    assert result, result
    assert result.reference.startswith("ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)")
    assert compare(tiny(), patient, images(), rungs=rungs)


def test_heads_of_as_many_classes_are_not_asked_to_have_them():
    result = compare(edited(avgpool=nn.AdaptiveAvgPool2d(2), fc=nn.Linear(2048, 10)), tiny(), images())
    assert "number of classes" not in str(result)
    result = compare(edited(fc=nn.Linear(512, 9)), tiny(), images())
    assert "give both heads the same number of classes" in result.rungs[0].detail


def test_features_of_several_stages_are_said_to_go_around_blocks():
    patient = edited(fc=nn.Linear(768, 10))
    patient.avgpool = Does(lambda self, x: torch.cat([x.mean((2, 3)), self.layer4(x).mean((2, 3))], 1))
    patient.avgpool.layer4, patient.layer4 = patient.layer4, nn.Identity()
    cause = compare(patient, tiny(), images(), rungs=["logits"]).likely_cause
    assert cause.startswith("unknown: the shortcut that ends at avgpool (test_kinds.py:")


def test_a_network_without_outputs_is_refused():
    with pytest.raises(RuntimeError, match=r"returns no numbers, but a tensor of shape \[2, 0\]; give its head"):
        compare(in_place_of("fc", lambda fc: Does(lambda self, x: x[:, :0]))(tiny()), tiny(), images())
    with pytest.raises(TypeError, match="got a Tensor; give images as inputs="):
        compare(tiny(), images())


def test_a_healthy_network_may_keep_its_channels_last():
    patient = images_through(lambda x: x.contiguous(memory_format=torch.channels_last))
    result = compare(patient, tiny(), images(), rungs=["BatchNorm statistics"])
    assert result, result


@pytest.mark.parametrize(
    ("output", "place"), [(lambda x: {"features": x[0], "logits": x}, "'logits'"), (lambda x: (x, x), "0")]
)
def test_outputs_that_are_no_tensor_are_refused_with_the_place_of_the_logits(output, place):
    patient = nn.Sequential(tiny(), Does(lambda self, x: output(x)))
    with pytest.raises(TypeError, match=rf"returns the logits, network\(x\)\[{place}\]"):
        compare(patient, tiny(), images())


def test_a_parametrized_network_finds_its_reference():
    network = tiny()
    nn.utils.parametrizations.weight_norm(network.conv1)
    assert nearest(network).config == {"num_classes": 10}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_layers_that_torch_cannot_see_are_refused_with_a_remedy():
    network = Does(lambda self, x: tiny()(x))
    with pytest.raises(ValueError, match="plain list, which torch does not look into, or name a reference"):
        complete(network, None, None)
    scripted = tiny()
    scripted.layer2 = torch.jit.script(scripted.layer2)
    with pytest.raises(TypeError, match="its layer2 is a TorchScript program; give its source"):
        compare(scripted, tiny(), images())
