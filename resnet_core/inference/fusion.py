"""A network as a graph of a ResNet's operations, each convolution with its BatchNorm, addition and ReLU in one."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_core.foundation.errors import shortened
from resnet_core.models.relus import separate_relus

Geometry = tuple[list[Any], list[int], list[int], int]  # padding, stride, dilation, groups
Arguments = tuple[Any, ...]

SHAPES_KEPT = 2  # of inputs, for each of which a convolution keeps its arguments

# What a ResNet computes beside its convolutions.
MODULES = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Linear, nn.Flatten)
FUNCTIONS = (operator.add, operator.getitem, torch.add, torch.flatten, F.pad, F.adaptive_avg_pool2d, "flatten", "mean")
NOTHING_IN_EVALUATION = (nn.Identity, nn.Dropout)


def traced(model: nn.Module) -> fx.GraphModule:
    """What `model` computes, as a graph that shares its tensors.

    Raises ValueError for a network with operations that are not a ResNet's.
    """
    network = separate_relus(model)
    check_operations(network)
    return network


def check_operations(network: fx.GraphModule) -> None:
    """Raises ValueError for a network with operations that are not a ResNet's."""
    unknown = {}
    for node in network.graph.nodes:
        if node.op == "call_module":
            module = network.get_submodule(node.target)
            if isinstance(module, nn.Conv2d):
                if isinstance(module.padding, str) or module.padding_mode != "zeros":
                    unknown[f"a convolution with padding {module.padding!r} of {module.padding_mode}"] = node
            elif isinstance(module, _BatchNorm):
                if module.running_mean is None:
                    unknown["BatchNorm without running statistics"] = node
            elif not isinstance(module, MODULES + NOTHING_IN_EVALUATION):
                unknown[type(module).__name__] = node
        elif node.op in ("call_function", "call_method") and node.target not in FUNCTIONS:
            unknown[getattr(node.target, "__name__", str(node.target))] = node

    if unknown:
        raise ValueError(
            f"optimize_for_inference takes networks of a ResNet's operations, and this one has {shortened(unknown)}; "
            "for others use torch.compile"
        )


def folded(network: fx.GraphModule) -> fx.GraphModule:
    """The network without Identity, Dropout, and the BatchNorms that follow a convolution: those change its weights.

    The new weights are computed in float64.
    """
    for node in list(network.graph.nodes):
        module = network.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, NOTHING_IN_EVALUATION):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
        elif isinstance(module, _BatchNorm) and (conv := only_conv(network, node.args[0])):
            network.set_submodule(node.args[0].target, with_norm(conv, module))
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    network.recompile()
    network.delete_all_unused_submodules()
    return network


def only_conv(network: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """The convolution that a node runs, if that is its only use and its result goes to one place."""
    if node.op != "call_module" or len(node.users) != 1:
        return None
    module = network.get_submodule(str(node.target))
    uses = sum(each.target == node.target for each in network.graph.nodes)
    return module if isinstance(module, nn.Conv2d) and uses == 1 else None


def with_norm(conv: nn.Conv2d, norm: _BatchNorm) -> nn.Conv2d:
    """A convolution that computes what `norm` makes of `conv`."""
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = (variance + norm.eps).rsqrt()
    shift = -mean * scale
    if norm.affine:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale

    both = copy.deepcopy(conv)
    both.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).float())
    both.bias = nn.Parameter(shift.float())
    return both


def fused(network: fx.GraphModule, inputs: Tensor) -> fx.GraphModule:
    """The network of `traced`, whose convolutions include the BatchNorm, the addition and the ReLU that follow them.

    It takes inputs of the shape of `inputs` but for the batch.
    """
    network = folded(network)
    ShapeProp(network).propagate(inputs)
    for node in list(network.graph.nodes):
        conv = network.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            continue

        # What follows, as long as nothing else reads what lies between.
        last, other = node, None
        added = next(iter(last.users)) if len(last.users) == 1 else None
        if added and added.target in (operator.add, torch.add) and not added.kwargs:
            other = next((each for each in added.args if each is not last), None)
            if isinstance(other, fx.Node) and shape_of(other) == shape_of(last):
                last = added
            else:
                other = None
        following = next(iter(last.users)) if len(last.users) == 1 else None
        relu = bool(
            following
            and following.op == "call_module"
            and isinstance(network.get_submodule(str(following.target)), nn.ReLU)
        )
        if relu:
            last = following

        own = f"{node.name}_fused"  # another use of the same convolution may have no ReLU
        network.add_submodule(own, FusedConv(conv, adds=other is not None, relu=relu))
        if last is node:
            node.target = own
        else:
            with network.graph.inserting_before(last):
                read = node.args[:1] if other is None else (node.args[0], other)
                call = network.graph.create_node("call_module", own, read, name=node.name)
            call.meta = last.meta
            last.replace_all_uses_with(call)
    network.graph.eliminate_dead_code()
    network.recompile()
    network.delete_all_unused_submodules()
    return network


def shape_of(node: fx.Node) -> Any:
    return getattr(node.meta.get("tensor_meta"), "shape", None)


class FusedOperation(nn.Module):
    """A convolution as one operation of oneDNN's, whose arguments are made once for inputs of a shape.

    The weights among them are in the order that oneDNN wants for that shape.
    """

    weight: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.kept: dict[torch.Size, tuple[Arguments, Arguments]] = {}

    @property
    def operation(self) -> Callable[..., Tensor]:
        raise NotImplementedError

    def arguments(self, shape: torch.Size) -> tuple[Arguments, Arguments]:
        """What the operation takes between inputs `[N, C, H, W]` and the addend, and what it takes after them."""
        raise NotImplementedError

    def forward(self, x: Tensor, *addend: Tensor) -> Tensor:
        if x.shape not in self.kept:
            self.check_inputs(x)
            while len(self.kept) >= SHAPES_KEPT:
                self.kept.pop(next(iter(self.kept)))
            self.kept[x.shape] = self.arguments(x.shape)
        between, after = self.kept[x.shape]
        return self.operation(x, *between, *addend, *after)

    def check_inputs(self, x: Tensor) -> None:
        channels = self.weight.shape[1] * self.geometry[-1]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"inputs must be [N, {channels}, H, W], got shape {list(x.shape)}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kept": {}}  # torch cannot copy weights in oneDNN's order


class FusedConv(FusedOperation):
    """`relu(convolution(x) + addend)` in one operation; the addition and the ReLU only where they are asked for."""

    def __init__(self, conv: nn.Conv2d, *, adds: bool, relu: bool) -> None:
        super().__init__((list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups))
        self.weight, self.bias = conv.weight, conv.bias
        self.adds, self.relu = adds, relu

    @property
    def operation(self) -> Callable[..., Tensor]:
        operations = torch.ops.mkldnn._convolution_pointwise
        return operations.binary if self.adds else operations.default

    def arguments(self, shape: torch.Size) -> tuple[Arguments, Arguments]:
        weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, list(shape))
        then = ("add", 1.0, "relu" if self.relu else None) if self.adds else ("relu" if self.relu else "none",)
        return (), (weight, self.bias, *self.geometry, *then, [], "")
