"""The exercises: one known mistake each, made by editing the text of our own `resnet.py`."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_core.exercises.symptoms import (
    LastMap,
    Logits,
    Misshapen,
    Missing,
    OutputsSumToOne,
    Parameters,
    RandomInTraining,
    RunningMeans,
    Symptom,
    Unexpected,
)

BLOCKS = ("BasicBlock", "Bottleneck")


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A mistake: what a student sees of it, and the edits of `resnet.py` that make it."""

    symptoms: tuple[Symptom, ...]
    """A test measures each of them."""
    edits: tuple[tuple[str, str], ...]
    """(old, new); each old text occurs once."""
    blocks: tuple[str, ...] = BLOCKS
    """The blocks whose networks have the mistake."""

    @property
    def symptom(self) -> str:
        """The symptoms in English; LEGEND explains them."""
        return "; ".join(map(str, self.symptoms))


STEM = "self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)"
STEM_FORWARD = "x = self.relu(self.bn1(self.conv1(x)))"
MAX_POOL = "nn.MaxPool2d(kernel_size=3, stride=2, padding=1)"
INNER = "out = self.relu(self.bn1(self.conv1(x)))\n        out = self."
END_BASIC = "out = self.bn2(self.conv2(out))\n        out += self.downsample(x)\n        return self.relu(out)"
END_BOTTLENECK = "out = self.bn3(self.conv3(out))\n        out += self.downsample(x)\n        return self.relu(out)"
NORM = "norm_layer = norm_layer or nn.BatchNorm2d\n        kind"
PROJECTION = "return nn.Sequential(conv1x1(in_channels, out_channels, stride), norm_layer(out_channels))"


def at_both_ends(new: str) -> tuple[tuple[str, str], ...]:
    """Replaces the last three lines of both blocks' forward; `branch` in `new` stands for the last norm's output."""
    ends = {END_BASIC: "self.bn2(self.conv2(out))", END_BOTTLENECK: "self.bn3(self.conv3(out))"}
    return tuple((old, new.replace("branch", branch)) for old, branch in ends.items())


# The names are those that the doctor gives; the easiest stand first.
EXERCISES: dict[str, Exercise] = {
    # Shapes or numbers of parameters are wrong.
    "no max-pool": Exercise(
        symptoms=(LastMap(14), Logits(percent_off=31)),
        edits=(("x = self.maxpool(x)  # [N, 64, H/4, W/4]\n        ", ""),),
    ),
    "3x3 stem": Exercise(
        symptoms=(Parameters(25_549_352), Misshapen("conv1.weight")),
        edits=((STEM, STEM.replace("kernel_size=7, stride=2, padding=3", "kernel_size=3, stride=2, padding=1")),),
    ),
    "no stem BatchNorm": Exercise(
        symptoms=(Parameters(25_556_904), Unexpected("bn1.weight")),
        edits=(("self.bn1 = norm_layer(64)", "self.bn1 = nn.Identity()"),),
    ),
    "expansion 2": Exercise(
        symptoms=(Parameters(17_763_880), Misshapen("layer1.0.conv3.weight")),
        edits=(("expansion = 4", "expansion = 2"),),
        blocks=("Bottleneck",),
    ),
    "no stride in layer4": Exercise(
        symptoms=(LastMap(14), Logits(percent_off=17)),
        edits=(("layers[3], stride=2", "layers[3], stride=1"),),
    ),
    "last stage not wider": Exercise(
        symptoms=(Parameters(13_970_472), Misshapen("layer4.0.conv1.weight")),
        edits=(
            ("256 * e, 512, layers[3]", "256 * e, 256, layers[3]"),
            ("nn.Linear(512 * e, num_classes)", "nn.Linear(256 * e, num_classes)"),
        ),
    ),
    "biased convolutions": Exercise(
        symptoms=(Parameters(25_583_592), Missing("conv1.bias")),
        edits=(
            ("groups=groups, bias=False", "groups=groups"),
            ("1, stride, bias=False", "1, stride"),
            (STEM, STEM.replace(", bias=False", "")),
        ),
    ),
    "one block too few in layer3": Exercise(
        symptoms=(Parameters(24_439_848), Unexpected("layer3.5.conv1.weight")),
        edits=(("256, layers[2]", "256, layers[2] - 1"),),
    ),
    "3x3 half as wide": Exercise(
        symptoms=(Parameters(12_381_864), Misshapen("layer1.0.conv1.weight")),
        edits=(("(base_width / 64.0)", "(base_width / 128.0)"),),
        blocks=("Bottleneck",),
    ),
    "2 groups in the 3x3": Exercise(
        symptoms=(Parameters(19_898_408), Misshapen("layer1.0.conv2.weight")),
        edits=(
            (
                "conv3x3(width, width, stride_3x3, groups, dilation)",
                "conv3x3(width, width, stride_3x3, 2 * groups, dilation)",
            ),
        ),
        blocks=("Bottleneck",),
    ),
    "no BatchNorm in the shortcut": Exercise(
        symptoms=(Parameters(25_549_352), Unexpected("layer1.0.downsample.1.weight")),
        edits=((PROJECTION, "return nn.Sequential(conv1x1(in_channels, out_channels, stride))"),),
    ),
    "projection on every block": Exercise(
        symptoms=(Parameters(40_128_552), Missing("layer1.1.downsample.0.weight")),
        edits=(
            ("    if stride == 1 and in_channels == out_channels:\n        return nn.Identity()\n", ""),
            (
                "        blocks.append(block(outplanes, planes, 1, None,",
                "        projection = make_shortcut(outplanes, outplanes, 1, norm_layer)\n"
                "        blocks.append(block(outplanes, planes, 1, projection,",
            ),
        ),
    ),
    # Our checkpoint loads, but the logits are wrong.
    "softmax in the output": Exercise(
        symptoms=(OutputsSumToOne(),),
        edits=(("x = self.fc(x)", "x = torch.softmax(self.fc(x), dim=1)"),),
    ),
    "no stem ReLU": Exercise(
        symptoms=(Logits(percent_off=4.1),),
        edits=((STEM_FORWARD + "  # [N", "x = self.bn1(self.conv1(x))  # [N"),),
    ),
    "average pool in the stem": Exercise(
        symptoms=(Logits(percent_off=36),),
        edits=((MAX_POOL, MAX_POOL.replace("Max", "Avg")),),
    ),
    "max-pool at the head": Exercise(
        symptoms=(Logits(percent_off=58),),
        edits=(("nn.AdaptiveAvgPool2d((1, 1))", "nn.AdaptiveMaxPool2d((1, 1))"),),
    ),
    "no shortcut": Exercise(
        symptoms=(Logits(percent_off=75),),
        edits=at_both_ends("out = branch\n        return self.relu(out)"),
    ),
    "no ReLU after the addition": Exercise(
        symptoms=(Logits(percent_off=420),),
        edits=at_both_ends("out = branch\n        out += self.downsample(x)\n        return out"),
    ),
    "stride 2 on the first stage only": Exercise(
        symptoms=(LastMap(28), Logits(percent_off=24)),
        edits=(
            ("layers[0], stride=1", "layers[0], stride=2"),
            *((f"layers[{stage}], stride=2", f"layers[{stage}], stride=1") for stage in (1, 2, 3)),
        ),
    ),
    "no ReLU inside the block": Exercise(
        symptoms=(Logits(percent_off=150),),
        edits=tuple(
            (INNER + rest, INNER.replace("self.relu(self.bn1(self.conv1(x)))", "self.bn1(self.conv1(x))") + rest)
            for rest in ("bn2", "relu")
        ),
    ),
    "ReLU before the addition": Exercise(
        symptoms=(Logits(percent_off=130),),
        edits=at_both_ends("out = self.relu(branch)\n        return out + self.downsample(x)"),
    ),
    "branch and shortcut averaged": Exercise(
        symptoms=(Logits(percent_off=84),),
        edits=at_both_ends("out = branch\n        out = (out + self.downsample(x)) / 2\n        return self.relu(out)"),
    ),
    "ReLU on the projected shortcut": Exercise(
        symptoms=(Logits(percent_off=46),),
        edits=((PROJECTION, PROJECTION.replace("norm_layer(out_channels))", "norm_layer(out_channels), nn.ReLU())")),),
    ),
    # These are found only by someone who knows what to look for.
    "average-pool shortcut": Exercise(
        symptoms=(Missing("layer1.0.downsample.2.weight"),),
        edits=(
            (
                PROJECTION,
                "projection = conv1x1(in_channels, out_channels)\n"
                "    return nn.Sequential(nn.AvgPool2d(stride), projection, norm_layer(out_channels))",
            ),
        ),
    ),
    "2x2 max-pool": Exercise(
        symptoms=(Logits(percent_off=16),),
        edits=((MAX_POOL, "nn.MaxPool2d(kernel_size=2, stride=2)"),),
    ),
    "max-pool without padding": Exercise(
        symptoms=(Logits(percent_off=13),),
        edits=((MAX_POOL, "nn.MaxPool2d(kernel_size=3, stride=2)"),),
    ),
    "stride on the first 1x1": Exercise(
        symptoms=(Logits(percent_off=20),),
        edits=(("(stride, 1) if stride_in_1x1 else (1, stride)", "(1, stride) if stride_in_1x1 else (stride, 1)"),),
        blocks=("Bottleneck",),
    ),
    "SAME padding in the stem": Exercise(
        symptoms=(Logits(percent_off=13),),
        edits=(
            (STEM, STEM.replace("padding=3, ", "")),
            (STEM_FORWARD + "  # [N", "x = nn.functional.pad(x, (2, 3, 2, 3))\n        " + STEM_FORWARD + "  # [N"),
        ),
    ),
    "SAME padding in the max-pool": Exercise(
        symptoms=(Logits(percent_off=13),),
        edits=((MAX_POOL, "nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)"),),
    ),
    "dropout before the head": Exercise(
        symptoms=(RandomInTraining(),),
        edits=(("x = self.fc(x)", "x = self.fc(nn.functional.dropout(x, training=self.training))"),),
    ),
    "BatchNorm momentum 0.9": Exercise(
        symptoms=(RunningMeans(times=9),),
        edits=((NORM, NORM.replace("nn.BatchNorm2d", "(lambda channels: nn.BatchNorm2d(channels, momentum=0.9))")),),
    ),
    "BatchNorm eps 1e-3": Exercise(
        symptoms=(Logits(percent_off=0.35),),
        edits=((NORM, NORM.replace("nn.BatchNorm2d", "(lambda channels: nn.BatchNorm2d(channels, eps=1e-3))")),),
    ),
    "BatchNorm eps 1.001e-5": Exercise(
        symptoms=(Logits(percent_off=0.0000036),),
        edits=((NORM, NORM.replace("nn.BatchNorm2d", "(lambda channels: nn.BatchNorm2d(channels, eps=1.001e-5))")),),
    ),
}

LEGEND = (
    "Parameters and the last feature map are those of a ResNet-50 at 224x224 pixels; 25,557,032 and 7x7 are right.",
    "Logits are those of a small network of Bottlenecks with our weights. How far they are off is the length of the",
    "difference divided by the length of the right logits.",
)
