"""The paper's Table 1, computed from a live model: `print(describe("resnet50"))`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resnet_core.models.registry import build
from resnet_core.models.resnet import Bottleneck

# Kept within the row before them: they change no shape.
NORMS_AND_ACTIVATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.ReLU)

# The paper's names of the stages, in networks that have all four.
TABLE_1_NAMES = {"layer1": "conv2_x", "layer2": "conv3_x", "layer3": "conv4_x", "layer4": "conv5_x"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a child of the model, with the norm and activation that follow it."""

    name: str
    layers: str
    """Kernel and channels of a block's convolutions, as the paper writes them, C the number of groups."""
    output_shape: tuple[int, ...]
    """Without the batch: `(C, H, W)` or `(C,)`."""
    blocks: int | None
    parameters: int
    multiply_adds: int
    """Of one sample, in convolutions and linear layers."""
    receptive_field: int | None
    """Pixels of the input that one output sees along the residual path; None after global pooling (all of them)."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Rows in the order data flows, and exact totals; `str()` is the table, `to_json()` the same for programs."""

    model: str
    image_size: int
    rows: tuple[Row, ...]
    parameters: int
    multiply_adds: int
    multiply_adds_by_form: dict[str, int]
    """For networks of Bottlenecks: "v1.5" (stride on the 3x3) and "v1" (the paper's Table 1); empty for others."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [
            ("stage", "layers", "output shape", "blocks", "parameters", "multiply-adds", "receptive field")
        ]
        paper = TABLE_1_NAMES if set(TABLE_1_NAMES) <= {row.name for row in self.rows} else {}
        cells += [_cells(row, paper.get(row.name)) for row in self.rows]
        cells += [("total", "", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}", "")]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [f"{self.model} at {self.image_size}x{self.image_size} pixels"]
        for line in cells:
            left, right = zip(line[:3], widths[:3], strict=True), zip(line[3:], widths[3:], strict=True)
            padded = [f"{cell:<{width}}" for cell, width in left] + [f"{cell:>{width}}" for cell, width in right]
            lines.append("  ".join(padded).rstrip())
        lines.append("1 multiply-add = 2 FLOPs, as most counters give them")
        places = {"v1.5": "stride on the 3x3", "v1": "stride on the first 1x1, as in He et al. 2015"}
        for form, multiply_adds in self.multiply_adds_by_form.items():
            lines.append(f"{form:<4}  {multiply_adds / 1e9:6.3f} G multiply-adds  ({places[form]})")
        return "\n".join(lines)


def describe(model_or_name: nn.Module | str, image_size: int = 224) -> Description:
    """Shapes, parameters, multiply-adds and receptive fields of a model, or of the one that a name stands for.

    Computed on the meta device by one forward pass of a square image of `image_size` pixels: no weights are copied
    and no arithmetic is done. Raises ValueError for an unknown name or a size below 1, TypeError for other things.
    """
    if not isinstance(image_size, int) or not 1 <= image_size <= 2**15:
        raise ValueError(f"image_size must be at least 1 pixel and at most {2**15}, got {image_size!r}")
    if isinstance(model_or_name, str):
        with torch.device("meta"):
            model = build(model_or_name)
        name = model_or_name.lower()
    elif isinstance(model_or_name, nn.Module):
        model, name = _on_meta(model_or_name), model_or_name._get_name()
    else:
        raise TypeError(f"describe() takes a model or a name, got {type(model_or_name).__name__}")
    model.eval()
    rows, multiply_adds = _trace(model, image_size)
    return Description(
        model=name,
        image_size=image_size,
        rows=tuple(rows),
        parameters=_count(model),
        multiply_adds=multiply_adds,
        multiply_adds_by_form=_forms(model, image_size, multiply_adds),
    )


def _cells(row: Row, paper_name: str | None) -> tuple[str, ...]:
    name = f"{row.name} ({paper_name})" if paper_name else row.name
    shape = "[" + ", ".join(map(str, row.output_shape)) + "]"
    field = "all" if row.receptive_field is None else str(row.receptive_field)
    blocks = "" if row.blocks is None else str(row.blocks)
    return name, row.layers, shape, blocks, f"{row.parameters:,}", f"{row.multiply_adds:,}", field


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model without its data; the original is not touched."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    clone = copy.deepcopy(model, memo)
    for module in clone.modules():  # hooks of its user are not for tensors without data
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return clone


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trace(model: nn.Module, image_size: int) -> tuple[list[Row], int]:
    """Rows of the model's children in execution order, and all multiply-adds."""
    from torch.utils.flop_counter import FlopCounterMode  # pulls in a lot that `import resnet_core` does not need

    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"describe() needs a model with a Conv2d, {type(model).__name__} has none")
    image = torch.empty(1, first.in_channels, image_size, image_size, device="meta", dtype=first.weight.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _watch(model) as calls:
        model(image)
    flops = {module: sum(counts.values()) for module, counts in counter.get_flop_counts().items()}
    rows: list[Row] = []
    for name, child, shape, field in calls:
        if isinstance(child, NORMS_AND_ACTIVATIONS) and rows:
            rows[-1] = Row(**{**vars(rows[-1]), "parameters": rows[-1].parameters + _count(child)})
            continue
        rows.append(
            Row(
                name=name,
                layers=_layers(child),
                output_shape=shape[1:],
                blocks=len(child) if isinstance(child, nn.Sequential) else None,
                parameters=_count(child),
                multiply_adds=flops.get(f"{type(model).__name__}.{name}", 0) // 2,
                receptive_field=field,
            )
        )
    return rows, counter.get_total_flops() // 2


@contextmanager
def _watch(model: nn.Module) -> Iterator[list[tuple[str, nn.Module, tuple[int, ...], int | None]]]:
    """Collects (name, child, output shape, receptive field) of each child of the model as it runs."""
    calls: list[tuple[str, nn.Module, tuple[int, ...], int | None]] = []
    field: int | None = 1
    jump = 1  # input pixels between two neighbours of the current map

    def widen(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal field, jump
        if isinstance(module, nn.AdaptiveAvgPool2d):
            field = None
        elif isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and field is not None:
            kernel, stride = _square(module.kernel_size), _square(module.stride)
            dilation = 1 if isinstance(module, nn.AvgPool2d) else _square(module.dilation)
            field += (kernel - 1) * dilation * jump
            jump *= stride

    handles = [
        module.register_forward_hook(widen)
        for name, module in model.named_modules()
        if "downsample" not in name.split(".")  # the shortcut sees no more than the path beside it
    ]
    for name, child in model.named_children():

        def collect(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            calls.append((name, module, tuple(output.shape), field))

        handles.append(child.register_forward_hook(collect))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _square(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _layers(child: nn.Module) -> str:
    """The convolutions of a stage's first block without its shortcut, or of the child itself, as the paper has them."""
    block = child[0] if isinstance(child, nn.Sequential) and len(child) else child
    parts = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Conv2d) and "downsample" not in name.split("."):
            groups = f", C={module.groups}" if module.groups > 1 else ""
            parts.append(f"{module.kernel_size[0]}x{module.kernel_size[1]}, {module.out_channels}{groups}")
    if parts:
        return " | ".join(parts)
    if isinstance(child, nn.MaxPool2d):
        return f"{_square(child.kernel_size)}x{_square(child.kernel_size)} max pool"
    return {nn.AdaptiveAvgPool2d: "global average pool", nn.Linear: "linear"}.get(type(child), type(child).__name__)


def _forms(model: nn.Module, image_size: int, multiply_adds: int) -> dict[str, int]:
    """Multiply-adds with the Bottlenecks' strides on the 3x3 and on the first 1x1. Leaves the model changed."""
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    strided = [block for block in blocks if block.conv1.stride != block.conv2.stride]
    if not strided:
        return {}
    names = ("v1", "v1.5") if strided[0].conv1.stride != (1, 1) else ("v1.5", "v1")
    for block in strided:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return dict(zip(names, (multiply_adds, _trace(model, image_size)[1]), strict=True))
