"""The paper's Table 1, computed from a live model: `print(describe("resnet50"))`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resnet_core.models.registry import build_on_meta
from resnet_core.models.resnet import Bottleneck

# Counted in the row before them: they change no shape.
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
        has_all_stages = set(TABLE_1_NAMES) <= {row.name for row in self.rows}
        cells = [
            ("stage", "layers", "output shape", "blocks", "parameters", "multiply-adds", "receptive field"),
            *(_cells(row, TABLE_1_NAMES.get(row.name) if has_all_stages else None) for row in self.rows),
            ("total", "", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}", ""),
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

        lines = [f"{self.model} at {self.image_size}x{self.image_size} pixels"]
        for line in cells:
            words = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
            lines.append("  ".join(words + numbers).rstrip())

        lines.append("1 multiply-add = 2 FLOPs, as most counters give them")
        places = {"v1.5": "stride on the 3x3", "v1": "stride on the first 1x1, as in He et al. 2015"}
        for form, multiply_adds in self.multiply_adds_by_form.items():
            lines.append(f"{form:<4}  {multiply_adds / 1e9:6.3f} G multiply-adds  ({places[form]})")
        return "\n".join(lines)


def _cells(row: Row, paper_name: str | None) -> tuple[str, ...]:
    name = f"{row.name} ({paper_name})" if paper_name else row.name
    shape = "[" + ", ".join(map(str, row.output_shape)) + "]"
    field = "all" if row.receptive_field is None else str(row.receptive_field)
    blocks = "" if row.blocks is None else str(row.blocks)
    return name, row.layers, shape, blocks, f"{row.parameters:,}", f"{row.multiply_adds:,}", field


def describe(model_or_name: nn.Module | str, image_size: int = 224) -> Description:
    """Shapes, parameters, multiply-adds and receptive fields of a model, given itself or its name.

    Computed on the meta device by one forward pass of a square image of `image_size` pixels: no weights are copied
    and no arithmetic is done. Raises ValueError for an unknown name or a size below 1, TypeError for anything that is
    not a model or a name.
    """
    if not isinstance(image_size, int) or not 1 <= image_size <= 2**15:
        raise ValueError(f"image_size must be at least 1 pixel and at most {2**15}, got {image_size!r}")
    if isinstance(model_or_name, str):
        model, name = build_on_meta(model_or_name), model_or_name.lower()
    elif isinstance(model_or_name, nn.Module):
        model, name = _copy_on_meta(model_or_name), model_or_name._get_name()
    else:
        raise TypeError(f"describe() takes a model or a name, got {type(model_or_name).__name__}")

    model.eval()
    rows, multiply_adds = _run(model, image_size)
    return Description(
        model=name,
        image_size=image_size,
        rows=tuple(rows),
        parameters=_count(model),
        multiply_adds=multiply_adds,
        multiply_adds_by_form=_multiply_adds_by_form(model, image_size, multiply_adds),
    )


def _copy_on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model without its data."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    clone = copy.deepcopy(model, memo)
    for module in clone.modules():  # the user's hooks may not work on tensors without data
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return clone


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _run(model: nn.Module, image_size: int) -> tuple[list[Row], int]:
    """The rows of the model's children in the order in which they run, and the multiply-adds of the whole model."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and `import resnet_core` does not need it

    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"describe() needs a model with a Conv2d, {type(model).__name__} has none")
    image = torch.empty(1, first.in_channels, image_size, image_size, device="meta", dtype=first.weight.dtype)

    with torch.no_grad(), FlopCounterMode(display=False) as counter, _calls_of_children(model) as calls:
        model(image)
    flops = {path: sum(by_operator.values()) for path, by_operator in counter.get_flop_counts().items()}

    rows: list[Row] = []
    for call in calls:
        if isinstance(call.module, NORMS_AND_ACTIVATIONS) and rows:
            rows[-1] = replace(rows[-1], parameters=rows[-1].parameters + _count(call.module))
        else:
            row = Row(
                name=call.name,
                layers=_layers(call.module),
                output_shape=call.output_shape[1:],
                blocks=len(call.module) if isinstance(call.module, nn.Sequential) else None,
                parameters=_count(call.module),
                multiply_adds=flops.get(f"{type(model).__name__}.{call.name}", 0) // 2,
                receptive_field=call.receptive_field,
            )
            rows.append(row)
    return rows, counter.get_total_flops() // 2


@dataclass(frozen=True)
class _Call:
    """One call of a child of the model in a forward pass."""

    name: str
    module: nn.Module
    output_shape: tuple[int, ...]
    receptive_field: int | None


class _ReceptiveField:
    """How many input pixels, along one side, one pixel of the current map sees."""

    def __init__(self) -> None:
        self.pixels: int | None = 1
        self.step = 1  # input pixels from one pixel of the map to the next

    def widen(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """The forward hook of each layer on the path."""
        if isinstance(module, nn.AdaptiveAvgPool2d):
            self.pixels = None
        elif isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and self.pixels is not None:
            dilation = 1 if isinstance(module, nn.AvgPool2d) else _side(module.dilation)
            self.pixels += (_side(module.kernel_size) - 1) * dilation * self.step
            self.step *= _side(module.stride)


@contextmanager
def _calls_of_children(model: nn.Module) -> Iterator[list[_Call]]:
    """Inside this context, a list that records each call of a child of the model."""
    calls: list[_Call] = []
    field = _ReceptiveField()

    def recording(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: calls.append(_Call(name, module, tuple(output.shape), field.pixels))

    # The shortcut sees no more than the path beside it.
    on_path = [module for name, module in model.named_modules() if not _in_shortcut(name)]
    handles = [module.register_forward_hook(field.widen) for module in on_path]
    handles += [child.register_forward_hook(recording(name)) for name, child in model.named_children()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _in_shortcut(name: str) -> bool:
    return "downsample" in name.split(".")


def _side(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _layers(module: nn.Module) -> str:
    """The convolutions of a stage's first block without its shortcut, or the layer itself, as the paper writes them."""
    block = module[0] if isinstance(module, nn.Sequential) and len(module) else module
    convolutions = []
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Conv2d) and not _in_shortcut(name):
            groups = f", C={layer.groups}" if layer.groups > 1 else ""
            convolutions.append(f"{layer.kernel_size[0]}x{layer.kernel_size[1]}, {layer.out_channels}{groups}")
    if convolutions:
        return " | ".join(convolutions)

    if isinstance(module, nn.MaxPool2d):
        return f"{_side(module.kernel_size)}x{_side(module.kernel_size)} max pool"
    return {nn.AdaptiveAvgPool2d: "global average pool", nn.Linear: "linear"}.get(type(module), type(module).__name__)


def _multiply_adds_by_form(model: nn.Module, image_size: int, multiply_adds: int) -> dict[str, int]:
    """Multiply-adds with the Bottlenecks' strides as they are, and on the other layer. Moves the strides in `model`."""
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    strided = [block for block in blocks if block.conv1.stride != block.conv2.stride]
    if not strided:
        return {}
    form, other = ("v1.5", "v1") if strided[0].conv1.stride == (1, 1) else ("v1", "v1.5")

    for block in strided:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    _, moved = _run(model, image_size)
    return {form: multiply_adds, other: moved}
