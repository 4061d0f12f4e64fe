"""A network in int8: weights with a step for each channel, activations with one for each tensor.

Post-training static quantisation (Jacob et al. 2018, arXiv:1712.05877). torchao observes their
ranges, oneDNN computes.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from resnet_core.inference.fusion import Arguments, FusedConv, FusedOperation

HIGHEST_WEIGHT = 127
POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


class Grid(NamedTuple):
    """What the numbers 0..255 stand for: `(number - zero) * step`."""

    step: float
    zero: int


def quantized(network: fx.GraphModule, grids: Mapping[str, Grid]) -> fx.GraphModule:
    """The network of `fused` with its convolutions in int8; average pooling and the head stay in float32.

    `grids` has the grid of each value, by its node's name, as `observed_grids` returns them.
    """
    grid_of = {node: grids[node.name] for node in network.graph.nodes if node.name in grids}
    modules: dict[str, nn.Module] = dict(network.named_modules())
    graph = fx.Graph()

    # Nodes of the network -> what has their value in the new graph, in float32 and in 8 bits.
    floats: dict[fx.Node, fx.Node] = {}
    bytes_: dict[fx.Node, fx.Node] = {}

    def as_float(node: fx.Node) -> fx.Node:
        if node not in floats:
            floats[node] = graph.call_function(from_8_bits, (bytes_[node], *grid_of[node]))
        return floats[node]

    def as_8_bits(node: fx.Node) -> fx.Node:
        if node not in bytes_:
            bytes_[node] = graph.call_function(to_8_bits, (floats[node], *grid_of[node]))
        return bytes_[node]

    order = {node: number for number, node in enumerate(network.graph.nodes)}
    for node in network.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        source = node.args[0] if node.args else None
        if isinstance(module, FusedConv):
            reads = [as_8_bits(each) for each in node.args]
            if len(reads) == 2 and max(order[user] for user in node.args[1].users) > order[node]:
                reads[1] = graph.call_function(torch.clone, (reads[1],))  # the operation writes over it
            name = f"{node.name}_int8"  # a convolution that is used twice has two ranges
            modules[name] = QuantizedConv(module, [grid_of[each] for each in node.args], grid_of[node])
            bytes_[node] = graph.call_module(name, tuple(reads))
        elif source in bytes_ and isinstance(module, nn.MaxPool2d):
            arguments = (getattr(module, name) for name in POOL_ARGUMENTS)
            bytes_[node] = graph.call_function(max_pool_in_8_bits, (bytes_[source], *arguments))
            grid_of[node] = grid_of[source]
        elif source in bytes_ and node.target is operator.getitem:
            bytes_[node] = graph.call_function(operator.getitem, (bytes_[source], *node.args[1:]))
            grid_of[node] = grid_of[source]
        elif source in bytes_ and node.target is F.pad and not node.kwargs.get("value"):
            zero = {"value": grid_of[source].zero}
            padded = graph.call_function(F.pad, (bytes_[source], *node.args[1:]), {**node.kwargs, **zero})
            # torch pads an empty batch in another memory format, which the addition refuses.
            bytes_[node] = graph.call_method("contiguous", (padded,), {"memory_format": torch.channels_last})
            grid_of[node] = grid_of[source]
        else:
            floats[node] = graph.node_copy(node, as_float)
    return fx.GraphModule(modules, graph)


def is_conv(node: fx.Node, network: fx.GraphModule) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), FusedConv)


def to_8_bits(x: Tensor, step: float, zero: int) -> Tensor:
    return (x / step).round_().add_(zero).clamp_(0, 255).to(torch.uint8)


def from_8_bits(x: Tensor, step: float, zero: int) -> Tensor:
    return (x.float() - zero) * step


def max_pool_in_8_bits(x: Tensor, *arguments: Any) -> Tensor:
    """torch pools no 8-bit numbers, and this is several times as fast as its pool of 16-bit ones."""
    sizes = torch.max_pool2d(torch.empty_like(x, dtype=torch.half, device="meta"), *arguments).shape
    for dim in (2, 3):
        x = max_along(x, dim, sizes[dim], *(_pair(each)[dim - 2] for each in arguments[:4]))
    return x


def max_along(x: Tensor, dim: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """The largest number of each window along one dimension, of `size` windows."""
    shape = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
    largest = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last).zero_()
    for tap in range(kernel):
        # The windows that have this number inside the map: from the first up to the end.
        offset = tap * dilation - padding
        first, end = max(0, -(offset // stride)), min(size, (x.shape[dim] - 1 - offset) // stride + 1)
        if first < end:
            before = (slice(None),) * dim
            windows = largest[*before, first:end]
            numbers = x[*before, first * stride + offset : (end - 1) * stride + offset + 1 : stride]
            torch.maximum(windows, numbers, out=windows)
    return largest


def is_for_users(record: logging.LogRecord) -> bool:
    """Whether a user can do something about it. On import torchao makes a call that torch has deprecated."""
    return "KernelPreference" not in record.getMessage()


def observed_grids(network: fx.GraphModule, calibration: Iterable[Tensor]) -> dict[str, Grid]:
    """The grid of each value that a convolution reads or makes, by its node's name.

    `calibration` gives batches of inputs, from which each range is taken. Raises ValueError without torchao (the extra
    `quantize`) and without a batch.
    """
    logging.getLogger("torch.utils._pytree").addFilter(is_for_users)
    try:
        from torchao.quantization.pt2e import HistogramObserver
    except ModuleNotFoundError as error:
        raise ValueError("int8 needs torchao: pip install 'resnet-core[quantize]'") from error

    convs = [node for node in network.graph.nodes if is_conv(node, network)]
    observers = {
        node: HistogramObserver(dtype=torch.uint8, quant_min=0, quant_max=255)
        for conv in convs
        for node in (conv, *conv.all_input_nodes)
    }
    observing = Observing(network, observers)
    for inputs in calibration:
        observing.run(inputs.float().to(memory_format=torch.channels_last))
        observing.batches += 1
    if not observing.batches:
        raise ValueError("int8 needs calibration: give at least one batch of inputs like those to come")

    found = {node: observer.calculate_qparams() for node, observer in observers.items()}
    return {node.name: Grid(float(step), int(zero)) for node, (step, zero) in found.items()}


class Observing(fx.Interpreter):
    """Runs a network and shows values to their observers."""

    def __init__(self, network: fx.GraphModule, observers: dict[fx.Node, nn.Module]) -> None:
        super().__init__(network)
        self.observers = observers
        self.batches = 0

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.observers:
            self.observers[node](value)
        return value


class QuantizedConv(FusedOperation):
    """`relu(convolution(x) + addend)` of 8-bit numbers; writes over the addend."""

    def __init__(self, conv: FusedConv, reads: list[Grid], makes: Grid) -> None:
        super().__init__(conv.geometry)
        steps = conv.weight.abs().amax(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny) / HIGHEST_WEIGHT
        self.register_buffer("weight", (conv.weight / steps[:, None, None, None]).round().to(torch.int8))
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int32))
        self.register_buffer("bias", conv.bias)
        self.reads, self.makes, self.relu = reads, makes, conv.relu

    @property
    def operation(self) -> Callable[..., Tensor]:
        operations = torch.ops.onednn
        return operations.qconv_pointwise.default if len(self.reads) == 1 else operations.qconv2d_pointwise.binary

    def arguments(self, shape: torch.Size) -> tuple[Arguments, Arguments]:
        padding, stride, dilation, groups = self.geometry
        weight = torch.ops.onednn.qconv_prepack(
            self.weight, self.steps, *self.reads[0], stride, padding, dilation, groups, list(shape)
        )
        added = [(*grid, "sum", 1.0) for grid in self.reads[1:]]
        after = (self.bias, stride, padding, dilation, groups, *self.makes, torch.uint8, *chain(*added))
        return (*self.reads[0], weight, self.steps, self.zeros), (*after, "relu" if self.relu else "none", [], "")
