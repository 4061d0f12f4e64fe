"""Draws ResNet-50 from the live model: docs/architecture-light.svg and docs/architecture-dark.svg.

    python docs/architecture.py

Every number comes from `describe` or from a module; the way through a block comes from its torch.fx graph.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx, nn

from resnet_core.models.describe import TABLE_1_NAMES, describe
from resnet_core.models.registry import build_on_meta

NAME = "resnet50"
WIDTH, HEIGHT, MARGIN = 800, 550, 20
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
BOLD = 'font-weight="600"'
CENTERED = 'text-anchor="middle"'
END = 'text-anchor="end"'
DASHED = 'stroke-dasharray="3 2"'
GAP = 7  # between two bars of a group


@dataclass(frozen=True, kw_only=True)
class Theme:
    text: str
    muted: str
    line: str
    box: str
    stride: str
    shortcut: str
    ends: str
    """The image, the stem and the head."""
    stages: tuple[str, ...]


THEMES = {
    "light": Theme(
        text="#1f2328", muted="#59636e", line="#8c959f", box="#f6f8fa", stride="#bc4c00", shortcut="#1a7f37",
        ends="#c9d1d9", stages=("#a9cdfa", "#78aef2", "#4686de", "#2059ad"),
    ),
    "dark": Theme(
        text="#e6edf3", muted="#9198a1", line="#6e7681", box="#161b22", stride="#f0883e", shortcut="#56d364",
        ends="#484f58", stages=("#1f4a80", "#2a66b0", "#4189dd", "#8cc2ff"),
    ),
}  # fmt: skip


class Drawing:
    """The elements of an SVG."""

    def __init__(self, theme: Theme) -> None:
        self.theme = theme
        self.elements: list[str] = []

    def text(self, x: float, y: float, words: str, *, color: str = "", style: str = "") -> None:
        self.elements.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{color or self.theme.text}" {style}>{words}</text>')

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str, style: str = "") -> None:
        sides = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.elements.append(f'<rect {sides} rx="2" fill="{fill}" {style}/>')

    def path(self, way: str, color: str, style: str = "") -> None:
        self.elements.append(f'<path d="{way}" fill="none" stroke="{color}" stroke-width="1.5" {style}/>')

    def arrow(self, x: float, y: float, to: float) -> None:
        self.path(f"M{x:.1f},{y:.1f}H{to:.1f}m-5,-3.5l5,3.5l-5,3.5", self.theme.line)

    def arc(self, x: float, y: float, to: float, style: str) -> None:
        self.path(
            f"M{x:.1f},{y:.1f}C{x:.1f},{y - 20:.1f} {to:.1f},{y - 20:.1f} {to:.1f},{y:.1f}", self.theme.shortcut, style
        )

    def svg(self, height: float, title: str) -> str:
        view = f'viewBox="0 0 {WIDTH} {height:.0f}" font-family="{FONT}" font-size="12"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} role="img"><title>{title}</title>'
        return "\n".join([head, *self.elements, "</svg>\n"])


def picture(theme: Theme) -> str:
    """The network from left to right, and below it the two kinds of blocks in its second stage."""
    model: Any = build_on_meta(NAME)
    description = describe(NAME)
    shapes = {row.name: row.output_shape for row in description.rows}
    drawing = Drawing(theme)

    title = NAME.replace("resnet", "ResNet-")
    totals = f"{description.parameters:,} parameters, {description.multiply_adds / 1e9:.2f} billion multiply-adds"
    drawing.text(MARGIN, 30, title, style='font-size="20" font-weight="700"')
    drawing.text(WIDTH - MARGIN, 30, totals, color=theme.muted, style='text-anchor="end"')

    draw_network(drawing, groups_of(model, shapes, description.image_size, theme))
    draw_legend(drawing, 281)

    first, second, *_ = model.layer2
    stage, kind = TABLE_1_NAMES["layer2"], type(first).__name__
    draw_block(drawing, 330, f"{kind}, the first of {stage}", first, shapes["layer1"], shapes["layer2"])
    draw_block(drawing, 450, f"{kind}, the others of {stage}", second, shapes["layer2"], shapes["layer2"])

    return drawing.svg(HEIGHT, f"{title}: {totals}")


@dataclass(frozen=True)
class Bar:
    """A layer or a block. Its height is the logarithm of its map's side, its width the square root of its channels."""

    shape: tuple[int, ...]
    """Of its output, (C, H, W) or (C,)."""
    module: nn.Module | None = None

    @property
    def width(self) -> float:
        return max(3, math.sqrt(self.shape[0]) / 2)

    @property
    def height(self) -> float:
        side = self.shape[-1] if len(self.shape) == 3 else 1
        return 6 + 16 * math.log2(side)

    @property
    def halves(self) -> bool:
        """Whether it, or a convolution of the block, has a stride."""
        layers = [self.module, *(self.module.children() if self.module else ())]
        return any(stride_of(layer) > 1 for layer in layers)


def stride_of(layer: nn.Module | None) -> int:
    stride = layer.stride if isinstance(layer, nn.Conv2d | nn.MaxPool2d) else 1
    return stride if isinstance(stride, int) else stride[0]


@dataclass(frozen=True)
class Group:
    """Bars above one label."""

    label: str
    layers: str
    bars: list[Bar]
    color: str

    @property
    def width(self) -> float:
        return sum(bar.width for bar in self.bars) + GAP * (len(self.bars) - 1)

    @property
    def shape(self) -> str:
        return as_text(self.bars[-1].shape)

    @property
    def space(self) -> float:
        """The width that bars and label need."""
        return max(self.width, 6.6 * max(len(self.layers), len(self.shape)))


def groups_of(model: Any, shapes: dict[str, tuple[int, ...]], image_size: int, theme: Theme) -> list[Group]:
    image = Bar((model.conv1.in_channels, image_size, image_size))
    stem = [Bar(shapes["conv1"], model.conv1), Bar(shapes["maxpool"], model.maxpool)]
    head = [Bar(shapes["avgpool"]), Bar(shapes["fc"])]
    stages = []
    for (name, paper_name), color in zip(TABLE_1_NAMES.items(), theme.stages, strict=True):
        blocks = model.get_submodule(name)
        stages.append(Group(paper_name, f"{len(blocks)} blocks", [Bar(shapes[name], block) for block in blocks], color))
    return [
        Group("image", "", [image], theme.ends),
        Group("stem", f"{as_text(model.conv1.kernel_size)}, max pool", stem, theme.ends),
        *stages,
        Group("head", "average, linear", head, theme.ends),
    ]


def as_text(shape: Iterable[int]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape))


def draw_network(drawing: Drawing, groups: list[Group]) -> None:
    """The groups side by side over the whole width."""
    between = (WIDTH - 2 * MARGIN - sum(group.space for group in groups)) / (len(groups) - 1)
    x: float = MARGIN
    for group in groups:
        draw_group(drawing, group, x + group.space / 2)
        x += group.space + between


def draw_group(drawing: Drawing, group: Group, center: float) -> None:
    theme = drawing.theme
    x = center - group.width / 2
    for bar in group.bars:
        top = 128 - bar.height / 2
        drawing.rectangle(x, top, bar.width, bar.height, group.color)
        if bar.halves:
            drawing.rectangle(x - 3, top, 2.5, bar.height, theme.stride)
        if hasattr(bar.module, "downsample"):
            is_identity = isinstance(bar.module.downsample, nn.Identity)
            drawing.arc(x - GAP / 2, top - 1, x + bar.width + GAP / 2, "" if is_identity else DASHED)
        x += bar.width + GAP

    drawing.text(center, 216, group.label, style=f"{CENTERED} {BOLD}")
    drawing.text(center, 232, group.layers, color=theme.muted, style=CENTERED)
    drawing.text(center, 248, group.shape, style=CENTERED)


def draw_legend(drawing: Drawing, y: float) -> None:
    theme = drawing.theme
    x = MARGIN + 26
    drawing.rectangle(x, y - 10, 8, 12, theme.stages[1])
    drawing.text(x + 15, y, "block: height by resolution, width by channels", color=theme.muted)
    drawing.arc(x + 332, y + 1, x + 350, "")
    drawing.text(x + 357, y, "identity shortcut", color=theme.muted)
    drawing.arc(x + 483, y + 1, x + 501, DASHED)
    drawing.text(x + 508, y, "projection", color=theme.muted)
    drawing.rectangle(x + 597, y - 10, 2.5, 12, theme.stride)
    drawing.text(x + 606, y, "halves the resolution", color=theme.muted)


def draw_block(
    drawing: Drawing, y: float, title: str, block: nn.Module, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """The residual branch from left to right, the shortcut below it, the addition of both, and what follows."""
    theme = drawing.theme
    branch, shortcut, rest = layers_of(block)
    drawing.text(MARGIN, y, title, style=BOLD)

    y += 36
    drawing.text(MARGIN, y + 4, as_text(before))
    x: float = MARGIN + 91
    fork = x + 8
    for layers in branch:
        drawing.arrow(x, y, x + 18)
        draw_layers(drawing, x + 22, y, layers)
        x += 22 + BOX_WIDTH + 2
    plus = x + 28
    drawing.arrow(x, y, plus - 11)

    # The shortcut leaves before the first layer and is added after the last.
    low = y + 50
    style = DASHED if shortcut else ""
    drawing.path(f"M{fork},{y}V{low - 8}q0,8 8,8H{plus - 8}q8,0 8,-8V{y + 11}", theme.shortcut, style)
    for layers in shortcut:
        draw_layers(drawing, (fork + plus - BOX_WIDTH) / 2, low, layers)
    drawing.elements.append(f'<circle cx="{fork}" cy="{y}" r="3" fill="{theme.shortcut}"/>')
    drawing.elements.append(f'<circle cx="{plus}" cy="{y}" r="9" fill="{theme.box}" stroke="{theme.shortcut}"/>')
    drawing.path(f"M{plus - 5},{y}h10m-5,-5v10", theme.shortcut)

    x = plus + 11
    for layers in rest:
        drawing.arrow(x, y, x + 15)
        draw_layers(drawing, x + 17, y, layers, width=42)
        x += 17 + 42 + 2
    drawing.arrow(x, y, x + 15)
    drawing.text(WIDTH - MARGIN, y + 4, as_text(after), style='text-anchor="end"')


BOX_WIDTH = 129


def draw_layers(drawing: Drawing, x: float, y: float, layers: list[nn.Module], width: float = BOX_WIDTH) -> None:
    """A convolution and what follows it, or an activation by itself."""
    theme = drawing.theme
    drawing.rectangle(x, y - 19, width, 38, theme.box, f'stroke="{theme.line}"')
    names = ", ".join(type(layer).__name__.removesuffix("2d") for layer in layers if not isinstance(layer, nn.Conv2d))
    if not isinstance(layers[0], nn.Conv2d):
        drawing.text(x + width / 2, y + 4, names, color=theme.muted, style=CENTERED)
        return

    convolution = layers[0]
    words = f"{as_text(convolution.kernel_size)}, {convolution.out_channels}"
    if convolution.groups > 1:
        words += f", C={convolution.groups}"
    if stride_of(convolution) > 1:
        words += f", stride {stride_of(convolution)}"
        drawing.rectangle(x - 3, y - 19, 2.5, 38, theme.stride)
    size = 'font-size="10.5"' if len(words) > 16 else ""  # some fonts are wide
    drawing.text(x + width / 2, y - 3, words, style=f"{CENTERED} {BOLD} {size}")
    drawing.text(x + width / 2, y + 12, names, color=theme.muted, style=f'{CENTERED} font-size="11"')


def layers_of(block: nn.Module) -> tuple[list[list[nn.Module]], list[list[nn.Module]], list[list[nn.Module]]]:
    """The layers on the residual branch, on the shortcut, and after their addition, each convolution with its norm."""
    graph = fx.symbolic_trace(block).graph
    (entry,) = graph.find_nodes(op="placeholder")
    (addition,) = graph.find_nodes(op="call_function", target=operator.add)
    (exit,) = graph.find_nodes(op="output")

    def way(start: fx.Node, end: fx.Node) -> list[nn.Module]:
        return [] if end is start else [*way(start, end.args[0]), block.get_submodule(end.target)]

    branch, shortcut = (way(entry, end) for end in addition.args)
    return grouped(branch), grouped(shortcut), grouped(way(addition, exit.args[0]))


def grouped(layers: list[nn.Module]) -> list[list[nn.Module]]:
    """A new group at each convolution; identities are left out."""
    groups: list[list[nn.Module]] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d) or not groups:
            groups.append([])
        groups[-1].append(layer)
    return [group for group in groups if not isinstance(group[0], nn.Identity)]


if __name__ == "__main__":
    for name, theme in THEMES.items():
        Path(__file__).with_name(f"architecture-{name}.svg").write_text(picture(theme), encoding="utf-8")
