"""A network in int8: weights with a step for each channel, activations with one for each tensor.

Post-training static quantisation (Jacob et al. 2018, arXiv:1712.05877). torchao observes their
ranges, oneDNN computes.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from resnet_core.inference.fusion import FusedConv, OrderedWeights

HIGHEST_WEIGHT = 127
POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


class Grid(NamedTuple):
    """What the numbers 0..255 stand for: `(number - zero) * step`."""

    step: float
    zero: int


def quantized(network: fx.GraphModule, grids: Mapping[str, Grid]) -> fx.GraphModule:
    """The network of `fused_graph` with its convolutions in int8; average pooling and the head stay in float32.

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
            bytes_[node] = graph.call_function(F.pad, (bytes_[source], *node.args[1:]), {**node.kwargs, **zero})
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
    """torch pools no 8-bit numbers of this size; float16 holds each of them exactly."""
    return torch.max_pool2d(x.half(), *arguments).to(torch.uint8)


def observed_grids(network: fx.GraphModule, calibration: Iterable[Tensor]) -> dict[str, Grid]:
    """The grid of each value that a convolution reads or makes, by its node's name.

    `calibration` gives batches of inputs, from which each range is taken. Raises ValueError without torchao (the extra
    `quantize`) and without a batch.
    """
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


class QuantizedConv(OrderedWeights):
    """`relu(convolution(x) + other)` of 8-bit numbers; writes over `other`."""

    def __init__(self, conv: FusedConv, reads: list[Grid], makes: Grid) -> None:
        super().__init__(conv.geometry)
        steps = conv.weight.abs().amax(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny) / HIGHEST_WEIGHT
        self.register_buffer("weight", (conv.weight / steps[:, None, None, None]).round().to(torch.int8))
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros(len(steps), dtype=torch.int32))
        self.register_buffer("bias", conv.bias)
        self.reads, self.makes, self.relu = reads, makes, conv.relu

    def reordered(self, shape: torch.Size) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        return torch.ops.onednn.qconv_prepack(
            self.weight, self.steps, *self.reads[0], stride, padding, dilation, groups, list(shape)
        )

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        weight = (self.weight_for(x.shape), self.steps, self.zeros)
        geometry, makes = (stride, padding, dilation, groups), (*self.makes, torch.uint8)
        if other is None:
            return torch.ops.onednn.qconv_pointwise(
                x, *self.reads[0], *weight, self.bias, *geometry, *makes, "relu" if self.relu else "none", [], ""
            )
        return torch.ops.onednn.qconv2d_pointwise.binary(
            x, *self.reads[0], *weight, other, self.bias, *geometry, *makes, *self.reads[1],
            "sum", 1.0, "relu" if self.relu else "none", [], "",
        )  # fmt: skip
