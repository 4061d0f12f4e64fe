"""Draws the site's figures from live models and recorded results, in light and dark: docs/figures/*.svg.

    python docs/figures.py

A test draws them again and compares. Blocks and colours come from architecture.py, boxes and bars from diagrams.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from architecture import BOLD, CENTERED, END, THEMES, WIDTH, Drawing, Theme, draw_block
from diagrams import checkpoint, file, in_words, ranks, rungs, speed, speed_records

import resnet_core
from resnet_core.models.describe import describe
from resnet_core.models.registry import build_on_meta
from resnet_core.recipes import get_recipe

DOCS = Path(__file__).parent


# Line charts ---------------------------------------------------------------------------------------------------------

Line = tuple[str, Sequence[tuple[float, float]], str, str]
"""Label, points, colour and style."""


def chart(
    theme: Theme,
    title: str,
    lines: Sequence[Line],
    *,
    x: tuple[str, float, float, Sequence[float]],
    y: tuple[str, float, float, Sequence[float]],
    written: Callable[[float], str] = lambda value: f"{value:g}",
) -> str:
    """Lines over two axes, each an axis' words, first and last value, and ticks; labels stand at the lines' ends."""
    drawing = Drawing(theme)
    left, right, top, bottom = 70.0, WIDTH - 170.0, 34.0, 270.0
    (x_words, x0, x1, x_ticks), (y_words, y0, y1, y_ticks) = x, y

    def across(value: float) -> float:
        return left + (value - x0) / (x1 - x0) * (right - left)

    def up(value: float) -> float:
        return bottom - (value - y0) / (y1 - y0) * (bottom - top)

    for tick in y_ticks:
        drawing.path(f"M{left:.1f},{up(tick):.1f}H{right:.1f}", theme.line, 'stroke-opacity="0.35"')
        drawing.text(left - 8, up(tick) + 4, written(tick), color=theme.muted, style=END)
    for tick in x_ticks:
        drawing.text(across(tick), bottom + 18, f"{tick:,g}", color=theme.muted, style=CENTERED)
    drawing.path(f"M{left:.1f},{bottom:.1f}H{right:.1f}", theme.line)
    drawing.text((left + right) / 2, bottom + 36, x_words, color=theme.muted, style=CENTERED)
    drawing.text(left, 18, y_words, color=theme.muted)

    above = bottom + 8
    for _, points, color, style in lines:
        way = "L".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)
        drawing.path(f"M{way}", color, f'stroke-linejoin="round" {style}')
    for label, points, color, _ in sorted(lines, key=lambda line: line[1][-1][1]):
        above = min(up(points[-1][1]) + 4, above - 15)
        drawing.text(right + 10, above, label, color=color, style=BOLD)
    return drawing.svg(bottom + 46, title)


def degradation_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DOCS / "results" / "degradation.jsonl").read_text().splitlines()]


def degradation(theme: Theme) -> str:
    lines = []
    for row in degradation_rows():
        color = theme.shortcut if row["kind"] == "residual" else theme.stride
        points = [(row["every"] * (number + 1), error) for number, error in enumerate(row["train_error"])]
        lines.append((f"{row['kind']}, {row['depth']} layers", points, color, "" if row["depth"] == 56 else DASHES))
    steps = degradation_rows()[0]["steps"]
    return chart(
        theme, "Training error of plain and residual networks", lines,
        x=("step", 0, steps, range(0, steps + 1, 250)), y=("training error", 0, 0.9, [0, 0.2, 0.4, 0.6, 0.8]),
        written=lambda value: f"{value:.0%}",
    )  # fmt: skip


DASHES = 'stroke-dasharray="6 4"'


def field(theme: Theme) -> str:
    """Receptive fields after stem and stages."""
    lines = []
    for name, color in zip(("resnet18", "resnet50", "resnet101"), theme.stages[1:], strict=True):
        rows = [row for row in describe(name).rows if row.receptive_field]
        points = [(number, row.receptive_field or 0) for number, row in enumerate(rows)]
        lines.append((f"{name.replace('resnet', 'ResNet-')}: {points[-1][1]}", points, color, ""))
    return chart(
        theme, "Receptive field after each stage, in pixels", lines,
        x=("0: stem's convolution, 1: max-pool, 2 to 5: conv2_x to conv5_x", 0, 5, range(6)),
        y=("pixels of the image that one output sees", 0, 1000, range(0, 1001, 200)),
    )  # fmt: skip


@cache
def deviations(zero_init_residual: bool, training: bool) -> list[tuple[float, float]]:
    """Block and deviation of its output, in an untrained ResNet-50."""
    torch.manual_seed(0)
    model = resnet_core.resnet50(zero_init_residual=zero_init_residual)
    found: list[float] = []
    for block in model.modules():
        if isinstance(block, resnet_core.Bottleneck):
            block.register_forward_hook(lambda module, inputs, output: found.append(output.std().item()))
    with torch.no_grad():
        model.train(training)(torch.randn(8, 3, 64, 64))
    return [(number, round(value, 2)) for number, value in enumerate(found, 1)]


def signal(theme: Theme) -> str:
    lines: list[Line] = [
        ("in training mode", deviations(False, True), theme.shortcut, ""),
        ("zero_init_residual", deviations(True, True), theme.stages[2], ""),
        ("in evaluation mode", deviations(False, False), theme.stride, ""),
    ]
    return chart(
        theme, "Deviation of the signal after each block of an untrained ResNet-50", lines,
        x=("block", 1, 16, range(1, 17)), y=("standard deviation", 0, 18, range(0, 19, 3)),
    )  # fmt: skip


RATES = ("digits", "fashion_mnist", "cifar10_resnet20", "imagenet_card")


def rates(theme: Theme) -> str:
    """The learning rates of four recipes, as shares of their peaks."""
    lines = []
    colors = (theme.stride, theme.shortcut, theme.stages[3], theme.muted)
    for name, color in zip(RATES, colors, strict=True):
        steps_per_epoch = 100
        recipe = get_recipe(name)
        steps = recipe.train.epochs * steps_per_epoch
        rate = recipe.lr_fn(steps_per_epoch=steps_per_epoch)
        peak = max(map(rate, range(steps)))
        wanted = sorted({round(share * (steps - 1) / 400) for share in range(401)})
        lines.append((name, [(step / steps, rate(step) / peak) for step in wanted], color, ""))
    return chart(
        theme, "The learning rate over a run, as a share of its peak", lines,
        x=("share of the run", 0, 1, [0, 0.25, 0.5, 0.75, 1]), y=("share of the peak", 0, 1, [0, 0.25, 0.5, 0.75, 1]),
    )  # fmt: skip


# Blocks --------------------------------------------------------------------------------------------------------------

Block = tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]
"""Title, module, the shape that comes in and the one that goes out."""


def stack(title: str, *blocks: Block) -> Callable[[Theme], str]:
    def draw(theme: Theme) -> str:
        drawing, y = Drawing(theme), 24
        for block in blocks:
            draw_block(drawing, y, *block)
            y += 120
        return drawing.svg(y - 4, title)

    return draw


def layer(name: str, stage: int, block: int) -> nn.Module:
    model: Any = build_on_meta(name)
    return model.get_submodule(f"layer{stage}")[block]


def v1() -> nn.Module:
    model: Any = build_on_meta("resnet50", stride_in_1x1=True)
    return model.layer2[0]


FIGURES: dict[str, Callable[[Theme], str]] = {
    "degradation": degradation,
    "basic": stack("A BasicBlock", ("BasicBlock in conv2_x", layer("resnet18", 1, 1), (64, 56, 56), (64, 56, 56))),
    "projection": stack(
        "A BasicBlock with a projection",
        ("BasicBlock, the first of conv3_x", layer("resnet18", 2, 0), (64, 56, 56), (128, 28, 28)),
    ),
    "stride": stack(
        "Where the stride sits in v1.5 and in v1",
        ("v1.5, the default", layer("resnet50", 2, 0), (256, 56, 56), (512, 28, 28)),
        ("v1, the paper's", v1(), (256, 56, 56), (512, 28, 28)),
    ),
    "wider": stack(
        "The second Bottleneck of conv2_x in three networks",
        ("ResNet-50", layer("resnet50", 1, 1), (256, 56, 56), (256, 56, 56)),
        ("ResNeXt-50 32x4d", layer("resnext50_32x4d", 1, 1), (256, 56, 56), (256, 56, 56)),
        ("Wide ResNet-50-2", layer("wide_resnet50_2", 1, 1), (256, 56, 56), (256, 56, 56)),
    ),
    "field": field,
    "signal": signal,
    "rates": rates,
    "ranks": ranks,
    "file": file,
    "checkpoint": checkpoint,
    "rungs": rungs,
    **{name: partial(speed, record=record) for name, record in speed_records().items()},
}


def degradation_table() -> str:
    """The errors at the end, as a table of Markdown."""
    lines = ["| network | training error | test error |", "|---|---|---|"]
    for row in degradation_rows():
        errors = f"{row['train_error'][-1]:.1%} | {row['test_error'][-1]:.1%}"
        lines.append(f"| {row['kind']}, {row['depth']} layers | {errors} |")
    return "\n".join(lines) + "\n"


def speed_pictures(names: Sequence[str]) -> str:
    """Pictures of docs/performance.md, one for each of these records of speed."""
    words = {name: in_words(record) for name, record in speed_records().items() if name in names}
    lines = [f"![{words[name]}](figures/{name}-{mode}.svg){{.only-{mode}}}" for name in words for mode in THEMES]
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """Each file's name and text."""
    texts = {f"{name}-{mode}.svg": draw(theme) for name, draw in FIGURES.items() for mode, theme in THEMES.items()}
    first = "speed-inference"
    others = [name for name in speed_records() if name != first]
    pictures = {"speed.md": speed_pictures([first]), "speed-others.md": speed_pictures(others)}
    return texts | {"degradation.md": degradation_table()} | pictures


if __name__ == "__main__":
    for name, text in files().items():
        (DOCS / "figures" / name).write_text(text, encoding="utf-8")
