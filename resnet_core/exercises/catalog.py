"""The exercises: one known mistake each, as textual edits of our own `resnet.py`."""

from __future__ import annotations

from dataclasses import dataclass

BLOCKS = ("BasicBlock", "Bottleneck")


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """A mistake as text: what a person sees of it, and the edits of `resnet.py` that make it."""

    symptom: str
    """What LEGEND explains; every number is measured by a test."""
    edits: tuple[tuple[str, str], ...]
    """(old, new); each old text occurs once."""
    blocks: tuple[str, ...] = BLOCKS
    """The blocks whose networks have it."""


STEM = "self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)"
STEM_FORWARD = "x = self.relu(self.bn1(self.conv1(x)))"
MAX_POOL = "nn.MaxPool2d(kernel_size=3, stride=2, padding=1)"
INNER = "out = self.relu(self.bn1(self.conv1(x)))\n        out = self."
END_BASIC = "out = self.bn2(self.conv2(out))\n        out += self.downsample(x)\n        return self.relu(out)"
END_BOTTLENECK = "out = self.bn3(self.conv3(out))\n        out += self.downsample(x)\n        return self.relu(out)"
NORM = "norm_layer = norm_layer or nn.BatchNorm2d\n        kind"
PROJECTION = "return nn.Sequential(conv1x1(in_channels, out_channels, stride), norm_layer(out_channels))"


def at_both_ends(new: str) -> tuple[tuple[str, str], ...]:
    """Edits of the last three lines of both blocks' forward, where `branch` stands for the last norm's result."""
    ends = {END_BASIC: "self.bn2(self.conv2(out))", END_BOTTLENECK: "self.bn3(self.conv3(out))"}
    return tuple((old, new.replace("branch", branch)) for old, branch in ends.items())


# The names are those of `resnet_core.comparison.mistakes.MISTAKES`; the easiest stand first.
EXERCISES: dict[str, Exercise] = {
    # Shapes or numbers of parameters tell it.
    "no max-pool": Exercise(
        symptom="the last map is 14x14; our checkpoint loads, but logits are 31% off",
        edits=(("x = self.maxpool(x)  # [N, 64, H/4, W/4]\n        ", ""),),
    ),
    "3x3 stem": Exercise(
        symptom="25,549,352 parameters; our conv1.weight does not fit",
        edits=((STEM, STEM.replace("kernel_size=7, stride=2, padding=3", "kernel_size=3, stride=2, padding=1")),),
    ),
    "no stem BatchNorm": Exercise(
        symptom="25,556,904 parameters; our bn1.weight has no place",
        edits=(("self.bn1 = norm_layer(64)", "self.bn1 = nn.Identity()"),),
    ),
    "expansion 2": Exercise(
        symptom="17,763,880 parameters; our layer1.0.conv3.weight does not fit",
        edits=(("expansion = 4", "expansion = 2"),),
        blocks=("Bottleneck",),
    ),
    "no stride in layer4": Exercise(
        symptom="the last map is 14x14; our checkpoint loads, but logits are 17% off",
        edits=(("layers[3], stride=2", "layers[3], stride=1"),),
    ),
    "last stage not wider": Exercise(
        symptom="13,970,472 parameters; our layer4.0.conv1.weight does not fit",
        edits=(
            ("256 * e, 512, layers[3]", "256 * e, 256, layers[3]"),
            ("nn.Linear(512 * e, num_classes)", "nn.Linear(256 * e, num_classes)"),
        ),
    ),
    "biased convolutions": Exercise(
        symptom="25,583,592 parameters; our checkpoint lacks conv1.bias",
        edits=(
            ("groups=groups, bias=False", "groups=groups"),
            ("1, stride, bias=False", "1, stride"),
            (STEM, STEM.replace(", bias=False", "")),
        ),
    ),
    "one block too few in layer3": Exercise(
        symptom="24,439,848 parameters; our layer3.5.conv1.weight has no place",
        edits=(("256, layers[2]", "256, layers[2] - 1"),),
    ),
    "3x3 half as wide": Exercise(
        symptom="12,381,864 parameters; our layer1.0.conv1.weight does not fit",
        edits=(("(base_width / 64.0)", "(base_width / 128.0)"),),
        blocks=("Bottleneck",),
    ),
    "2 groups in the 3x3": Exercise(
        symptom="19,898,408 parameters; our layer1.0.conv2.weight does not fit",
        edits=(
            (
                "conv3x3(width, width, stride_3x3, groups, dilation)",
                "conv3x3(width, width, stride_3x3, 2 * groups, dilation)",
            ),
        ),
        blocks=("Bottleneck",),
    ),
    "no BatchNorm in the shortcut": Exercise(
        symptom="25,549,352 parameters; our layer1.0.downsample.1.weight has no place",
        edits=((PROJECTION, "return nn.Sequential(conv1x1(in_channels, out_channels, stride))"),),
    ),
    "projection on every block": Exercise(
        symptom="40,128,552 parameters; our checkpoint lacks layer1.1.downsample.0.weight",
        edits=(
            ("    if stride == 1 and in_channels == out_channels:\n        return nn.Identity()\n", ""),
            (
                "        blocks.append(block(outplanes, planes, 1, None,",
                "        projection = make_shortcut(outplanes, outplanes, 1, norm_layer)\n"
                "        blocks.append(block(outplanes, planes, 1, projection,",
            ),
        ),
    ),
    # Our checkpoints load, and give other logits.
    "softmax in the output": Exercise(
        symptom="our checkpoint loads, but the outputs of each image sum to 1",
        edits=(("x = self.fc(x)", "x = torch.softmax(self.fc(x), dim=1)"),),
    ),
    "no stem ReLU": Exercise(
        symptom="our checkpoint loads, but logits are 4.1% off",
        edits=((STEM_FORWARD + "  # [N", "x = self.bn1(self.conv1(x))  # [N"),),
    ),
    "average pool in the stem": Exercise(
        symptom="our checkpoint loads, but logits are 36% off",
        edits=((MAX_POOL, MAX_POOL.replace("Max", "Avg")),),
    ),
    "max-pool at the head": Exercise(
        symptom="our checkpoint loads, but logits are 58% off",
        edits=(("nn.AdaptiveAvgPool2d((1, 1))", "nn.AdaptiveMaxPool2d((1, 1))"),),
    ),
    "no shortcut": Exercise(
        symptom="our checkpoint loads, but logits are 75% off",
        edits=at_both_ends("out = branch\n        return self.relu(out)"),
    ),
    "no ReLU after the addition": Exercise(
        symptom="our checkpoint loads, but logits are 420% off",
        edits=at_both_ends("out = branch\n        out += self.downsample(x)\n        return out"),
    ),
    "stride 2 on the first stage only": Exercise(
        symptom="the last map is 28x28; our checkpoint loads, but logits are 24% off",
        edits=(
            ("layers[0], stride=1", "layers[0], stride=2"),
            *((f"layers[{stage}], stride=2", f"layers[{stage}], stride=1") for stage in (1, 2, 3)),
        ),
    ),
    "no ReLU inside the block": Exercise(
        symptom="our checkpoint loads, but logits are 150% off",
        edits=tuple(
            (INNER + rest, INNER.replace("self.relu(self.bn1(self.conv1(x)))", "self.bn1(self.conv1(x))") + rest)
            for rest in ("bn2", "relu")
        ),
    ),
    "ReLU before the addition": Exercise(
        symptom="our checkpoint loads, but logits are 130% off",
        edits=at_both_ends("out = self.relu(branch)\n        return out + self.downsample(x)"),
    ),
    "branch and shortcut averaged": Exercise(
        symptom="our checkpoint loads, but logits are 84% off",
        edits=at_both_ends("out = branch\n        out = (out + self.downsample(x)) / 2\n        return self.relu(out)"),
    ),
    "ReLU on the projected shortcut": Exercise(
        symptom="our checkpoint loads, but logits are 46% off",
        edits=((PROJECTION, PROJECTION.replace("norm_layer(out_channels))", "norm_layer(out_channels), nn.ReLU())")),),
    ),
    # One has to know what to look for.
    "average-pool shortcut": Exercise(
        symptom="our checkpoint lacks layer1.0.downsample.2.weight",
        edits=(
            (
                PROJECTION,
                "projection = conv1x1(in_channels, out_channels)\n"
                "    return nn.Sequential(nn.AvgPool2d(stride), projection, norm_layer(out_channels))",
            ),
        ),
    ),
    "2x2 max-pool": Exercise(
        symptom="our checkpoint loads, but logits are 16% off",
        edits=((MAX_POOL, "nn.MaxPool2d(kernel_size=2, stride=2)"),),
    ),
    "max-pool without padding": Exercise(
        symptom="our checkpoint loads, but logits are 13% off",
        edits=((MAX_POOL, "nn.MaxPool2d(kernel_size=3, stride=2)"),),
    ),
    "stride on the first 1x1": Exercise(
        symptom="our checkpoint loads, but logits are 20% off",
        edits=(("(stride, 1) if stride_in_1x1 else (1, stride)", "(1, stride) if stride_in_1x1 else (stride, 1)"),),
        blocks=("Bottleneck",),
    ),
    "SAME padding in the stem": Exercise(
        symptom="our checkpoint loads, but logits are 13% off",
        edits=(
            (STEM, STEM.replace("padding=3, ", "")),
            (STEM_FORWARD + "  # [N", "x = nn.functional.pad(x, (2, 3, 2, 3))\n        " + STEM_FORWARD + "  # [N"),
        ),
    ),
    "SAME padding in the max-pool": Exercise(
        symptom="our checkpoint loads, but logits are 13% off",
        edits=((MAX_POOL, "nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)"),),
    ),
    "dropout before the head": Exercise(
        symptom="right in evaluation; in training, the same images give other logits each time",
        edits=(("x = self.fc(x)", "x = self.fc(nn.functional.dropout(x, training=self.training))"),),
    ),
    "BatchNorm momentum 0.9": Exercise(
        symptom="right in evaluation; after one forward pass in training, running means are 9 times ours",
        edits=((NORM, NORM.replace("nn.BatchNorm2d", "(lambda channels: nn.BatchNorm2d(channels, momentum=0.9))")),),
    ),
    "BatchNorm eps 1e-3": Exercise(
        symptom="our checkpoint loads, but logits are 0.35% off",
        edits=((NORM, NORM.replace("nn.BatchNorm2d", "(lambda channels: nn.BatchNorm2d(channels, eps=1e-3))")),),
    ),
    "BatchNorm eps 1.001e-5": Exercise(
        symptom="our checkpoint loads, but logits are 0.0000036% off",
        edits=((NORM, NORM.replace("nn.BatchNorm2d", "(lambda channels: nn.BatchNorm2d(channels, eps=1.001e-5))")),),
    ),
}

LEGEND = (
    "Parameters and maps: of a ResNet-50 at 224x224 pixels, where 25,557,032 and 7x7 are right. Logits: how far off is",
    "the length of the difference over that of the right ones, in a small network of Bottlenecks with our weights.",
)
