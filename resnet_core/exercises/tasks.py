"""Tasks of building and explaining: a file with gaps, and a check of what a student filled in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.describe import describe
from resnet_core.models.registry import build_on_meta
from resnet_core.models.resnet import BasicBlock, conv1x1

Space = Mapping[str, Any]  # the file's names -> what they stand for
Wrong = Iterator[tuple[str, str]]
"""A name of the file, and what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a student is asked, the file with gaps (`...`), and the check of the filled file."""

    title: str
    question: str
    gaps: str
    check: Callable[[Space], Wrong]


def text_of(name: str, filename: str) -> str:
    """The file of a task; `filename` is where it will be saved. Raises ValueError for an unknown task."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; {did_you_mean(name, TASKS)}")
    task = TASKS[name]
    lines = [task.title, "", *task.question.splitlines(), "", f"Fill in each `...`, then: resnet-core grade {filename}"]
    head = "\n".join(f"# {line}".rstrip() for line in lines)
    return f'{head}\n\nTASK = "{name}"\n\n{task.gaps}'


def task_of(path: Path) -> str | None:
    """The task that a file names; None where it is none."""
    found = re.search(r'^TASK = "(.+)"$', path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found else None


def expect(space: Space, name: str, right: object, hint: str) -> Wrong:
    """What to say of a name of the file: nothing if its value is right."""
    value = space.get(name, ...)
    if value is ...:
        yield name, "fill it in"
    elif (tuple(value) if isinstance(value, list) else value) != right:
        yield name, f"{value!r} is not right: {hint}"


def check_block(space: Space) -> Wrong:
    theirs = space.get("Block")
    if not isinstance(theirs, type) or not issubclass(theirs, nn.Module):
        yield "Block", "must be a class and an nn.Module"
        return

    for inplanes, planes, stride in ((8, 8, 1), (8, 16, 2)):
        shape = f"Block({inplanes}, {planes}, {stride})"
        shortcut = None if stride == 1 else nn.Sequential(conv1x1(inplanes, planes, stride), nn.BatchNorm2d(planes))
        torch.manual_seed(0)
        ours = BasicBlock(inplanes, planes, stride, shortcut)
        yours = theirs(inplanes, planes, stride)
        if sizes(yours) != sizes(ours):
            yield shape, f"its tensors are {sizes(yours)}; BasicBlock's are {sizes(ours)}"
            continue

        yours.load_state_dict(dict(zip(yours.state_dict(), ours.state_dict().values(), strict=True)))
        images = torch.randn(4, inplanes, 9, 9)
        for mode in ("training", "evaluation"):
            results = [block.train(mode == "training")(images.clone()) for block in (yours, ours)]
            if results[0].shape != results[1].shape:
                yield shape, f"writes {list(results[0].shape)} where BasicBlock writes {list(results[1].shape)}"
                break
            if not torch.allclose(results[0], results[1], atol=1e-5):
                difference = (results[0] - results[1]).norm() / results[1].norm()
                yield shape, f"its output in {mode} is {difference:.0%} off with the same weights"
                break


def sizes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in module.state_dict().values()]


def check_stride(space: Space) -> Wrong:
    model: Any = build_on_meta("resnet50")
    strides = tuple(getattr(model, f"layer{number}")[0].conv2.stride[0] for number in (1, 2, 3, 4))
    yield from expect(space, "STRIDES", strides, "what has halved the map before conv2_x?")

    for name, moved in (("V1_5", False), ("V1", True)):
        block: Any = build_on_meta("resnet50", stride_in_1x1=moved).get_submodule("layer2.0")
        (right,) = (conv for conv in ("conv1", "conv2", "conv3") if getattr(block, conv).stride == (2, 2))
        yield from expect(space, name, right, "see Bottleneck.__init__")

    shapes = {row.name: row.output_shape for row in describe("resnet101", 288).rows}
    hint = "the image has 288 pixels; count the halvings before the end of conv4_x, and the expansion"
    yield from expect(space, "CONV4_X", shapes["layer3"], hint)


def check_parameters(space: Space) -> Wrong:
    count = space.get("parameters")
    if not callable(count):
        yield "parameters", "must be a function of the four depths"
        return
    for name, depths in (("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3))):
        value, right = count(depths), sum(each.numel() for each in build_on_meta(name).parameters())
        if value is ...:
            yield "parameters", "fill it in"
            return
        if value != right:
            yield f"parameters({depths})", f"{value:,} instead of {right:,}: {value - right:+,}"


def check_resnext(space: Space) -> Wrong:
    resnext: Any = build_on_meta("resnext50_32x4d")
    arguments = space.get("ARGUMENTS")
    if not isinstance(arguments, dict):
        yield "ARGUMENTS", "must be a dictionary of arguments of resnet50"
    else:
        yours: Any = build_on_meta("resnet50", **arguments)
        if sizes(yours) != sizes(resnext) or yours.layer1[0].conv2.groups != resnext.layer1[0].conv2.groups:
            yield "ARGUMENTS", f"give the 3x3 {yours.layer1[0].conv2}; ResNeXt's is {resnext.layer1[0].conv2}"

    weights = resnext.layer1[1].conv2.weight.numel()
    yield from expect(space, "WEIGHTS", weights, "a group maps 4 channels to 4, and there are 32")


def check_decay(space: Space) -> Wrong:
    shrink = space.get("coupled")
    if not callable(shrink) or shrink(1.0, 0.5, 0.1) is ...:
        yield "coupled", "must be a function that returns the share by which a step shrinks a weight"
        return
    for lr, momentum, decay in ((2.048, 0.875, 5e-4), (0.1, 0.9, 1e-4), (0.1, 0.0, 1e-4)):
        value, right = shrink(lr, momentum, decay), measured_decay(lr, momentum, decay)
        if abs(value / right - 1) > 0.02:
            yield (
                f"coupled({lr}, {momentum}, {decay})",
                f"{value:.3g}, where torch's SGD shrinks a weight by {right:.3g}",
            )
    factor = space.get("FACTOR", ...)
    rounded = {**space, "FACTOR": round(factor, 1) if isinstance(factor, float) else factor}
    yield from expect(rounded, "FACTOR", 16.4, "the coupled share of the card's numbers, divided by the decoupled one")


def measured_decay(lr: float, momentum: float, decay: float) -> float:
    """By how much torch's SGD shrinks a weight without gradients in a step, once momentum has built up.

    Measured with a decay that is small enough for the first order, and scaled.
    """
    weight = nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr, momentum=momentum, weight_decay=decay / 1000)
    weight.grad = torch.zeros_like(weight)
    for _ in range(200):
        before = weight.item()
        optimizer.step()
    return 1000 * (1 - weight.item() / before)


def check_ranks(space: Space) -> Wrong:
    normalize = space.get("normalize")
    torch.manual_seed(0)
    batch = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    for num_ranks in (1, 2, 4):
        norms = [nn.BatchNorm2d(3, affine=False, dtype=torch.float64) for _ in range(num_ranks)]
        right = torch.cat([norm(part) for norm, part in zip(norms, batch.chunk(num_ranks), strict=True)])
        value = normalize(batch.clone(), num_ranks) if callable(normalize) else ...
        if not isinstance(value, Tensor):
            yield "normalize", "must be a function that returns a tensor"
            return
        if value.shape != right.shape or not torch.allclose(value, right, atol=1e-6):
            yield (
                f"normalize(batch, {num_ranks})",
                "is not what the ranks' BatchNorms write; which images does each see?",
            )
            break

    for name, right_answer in ANSWERS.items():
        yield from expect(space, name, right_answer, "see the picture in docs/train/ranks.md")


# After one step of two ranks: is it the same on both?
ANSWERS = {"WEIGHTS": True, "RUNNING_MEANS": False, "OUTPUT_OF_THE_SAME_IMAGE": False, "LEARNING_RATE": True}


TASKS = {
    "block": Task(
        title="Build BasicBlock.",
        question="Write the block of ResNet-18 with layers of torch.nn: two 3x3 convolutions, each with a BatchNorm,\n"
        "a shortcut (a 1x1 convolution and a BatchNorm where the shape changes), ReLUs where they belong. Build the\n"
        "layers in this order; their names are yours. The check gives your block BasicBlock's weights.",
        gaps="from torch import nn\n\n\nclass Block(nn.Module):\n    def __init__(self, inplanes, planes, stride=1):\n"
        "        super().__init__()\n        ...\n\n    def forward(self, x):\n        ...\n",
        check=check_block,
    ),
    "stride": Task(
        title="Place the stride.",
        question="STRIDES: of the first block in conv2_x, conv3_x, conv4_x and conv5_x of ResNet-50.\n"
        'V1_5 and V1: the convolution of a Bottleneck that has it, "conv1", "conv2" or "conv3".\n'
        "CONV4_X: channels, height and width that conv4_x of ResNet-101 gives at 288 pixels.",
        gaps="STRIDES = ...\nV1_5 = ...\nV1 = ...\nCONV4_X = ...\n",
        check=check_stride,
    ),
    "parameters": Task(
        title="Reach 25,557,032.",
        question="Count the parameters of ResNet-50 with arithmetic: without torch, from the depths (3, 4, 6, 3).\n"
        "The same function must count ResNet-101 and 152.",
        gaps="def parameters(depths):\n    return ...\n",
        check=check_parameters,
    ),
    "resnext": Task(
        title="Turn ResNet-50 into ResNeXt-50 32x4d.",
        question="ARGUMENTS: what resnet50(**ARGUMENTS) needs to be ResNeXt-50.\n"
        "WEIGHTS: how many weights a 3x3 of its conv2_x has then.",
        gaps="ARGUMENTS = ...\nWEIGHTS = ...\n",
        check=check_resnext,
    ),
    "decay": Task(
        title="Derive the 16.4.",
        question="coupled: the share by which a step of torch's SGD shrinks a weight that gets no gradient, to first\n"
        "order, once momentum has built up.\n"
        "FACTOR: how much that is for the model card's lr 2.048, momentum 0.875 and decay 5e-4, in units of the\n"
        "decoupled share, which is 5e-4.",
        gaps="def coupled(lr, momentum, decay):\n    return ...\n\n\nFACTOR = ...\n",
        check=check_decay,
    ),
    "ranks": Task(
        title="Explain two ranks' BatchNorm.",
        question="normalize: what the BatchNorms of `num_ranks` processes write in training for a batch [N, C, H, W]\n"
        "that is split evenly among them (without scale and shift, eps 1e-5).\n"
        "The four answers are True or False: is it the same on both ranks after one step of two?",
        gaps="import torch\n\n\ndef normalize(batch, num_ranks):\n    return ...\n\n\n"
        "WEIGHTS = ...\nRUNNING_MEANS = ...\nOUTPUT_OF_THE_SAME_IMAGE = ...\nLEARNING_RATE = ...\n",
        check=check_ranks,
    ),
}
