"""A ReLU module for each use, out of place: the form of a network that attribution and static quantisation need."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional as F

from resnet_core.foundation.errors import first_line

RELU_FUNCTIONS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


def separate_relus(model: nn.Module) -> fx.GraphModule:
    """The same network as a torch.fx graph in which every use of a ReLU is a module of its own and works out of place.

    A ResNet's blocks use one ReLU two or three times, which Captum's DeepLift and torchao's quantisation refuse. The
    second use of `layer1.0.relu` becomes `layer1.0.relu_2`, and additions in place become additions. Outputs and
    gradients are equal to the bit; parameters and buffers are shared with `model` and keep their names.
    Raises ValueError for a network that torch.fx cannot trace.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # of torch.fx, or of the network, which meets a symbol in place of a tensor
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({first_line(error)}); give a network whose forward does "
            "the same for all inputs, without a wrapper such as DataParallel"
        ) from error

    network = fx.GraphModule(model, graph)
    uses: Counter[str] = Counter()
    for node in graph.nodes:
        path = relu_path(node, model)
        if path is None and node.target != "add_":
            continue
        if works_in_place(node, model):
            read_output_instead_of_input(node)
        if path is None:
            node.op, node.target = "call_function", torch.add
        else:
            uses[path] += 1
            node.op, node.target = "call_module", path if uses[path] == 1 else f"{path}_{uses[path]}"
            node.args, node.kwargs = (node.args or (node.kwargs["input"],))[:1], {}
            network.add_submodule(str(node.target), nn.ReLU())

    network.recompile()
    return network


def relu_path(node: fx.Node, model: nn.Module) -> str | None:
    """The name of a ReLU module, or one for a ReLU function in the module that calls it; None for other operations."""
    if node.op == "call_module":
        return str(node.target) if isinstance(model.get_submodule(str(node.target)), nn.ReLU) else None
    if node.op in ("call_function", "call_method") and node.target in RELU_FUNCTIONS:
        callers: list[str] = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        return f"{callers[-1]}.functional_relu" if callers else "functional_relu"
    return None


def works_in_place(node: fx.Node, model: nn.Module) -> bool:
    """Whether a ReLU or an addition writes its result over its input."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    return getattr(node.target, "__name__", str(node.target)).endswith("_") or bool(node.kwargs.get("inplace"))


def read_output_instead_of_input(node: fx.Node) -> None:
    """Lets what comes after `node` and reads its input read its output: what the input held after the operation."""
    node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=lambda user: user != node and user > node)
