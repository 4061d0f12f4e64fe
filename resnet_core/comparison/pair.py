"""Two networks, private copies of those given, in which each module with weights has its counterpart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_core.comparison.matching import align, matching_tensors, own_shapes, perturb_constants, trace
from resnet_core.comparison.networks import with_place

Network = nn.Module | Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two networks as they start, in evaluation mode, and which module of one stands for which of the other."""

    a: nn.Module
    b: nn.Module
    inputs: Tensor
    labels: Tensor
    generators: tuple[Tensor, Tensor] | None
    """The random generator's state after building each; None unless both were built by functions."""
    counterparts: dict[str, str]
    """Paths of the first network's modules -> those of the second."""
    unmatched: list[str]
    """Modules of either network without counterpart, in words."""
    shared_modules: list[str]
    """Modules that hold several weights, or weights and layers: for them no counterpart can be found."""
    unused: list[str]
    """Modules with weights that never run."""

    @property
    def comparable(self) -> bool:
        return not self.unmatched and not self.shared_modules

    @property
    def renamed(self) -> dict[str, str]:
        """The modules whose counterparts have other names."""
        return {ours: theirs for ours, theirs in self.counterparts.items() if ours != theirs}

    def tensor_names(self) -> dict[str, str]:
        """The first network's parameters and buffers -> those of the second."""
        return {
            join(path, name): join(counterpart, their_name)
            for path, counterpart in self.counterparts.items()
            for name, their_name in matching_tensors(
                self.a.get_submodule(path), self.b.get_submodule(counterpart)
            ).items()
        }


def match(a: Network, b: Network, inputs: Tensor) -> Pair:
    """Builds or copies both networks, runs each once on the inputs and finds which modules correspond.

    Raises TypeError for anything that is not a network, and RuntimeError for one that does not run on these inputs.
    """
    inputs = inputs.float().clone()
    first, first_generator, _ = private_copy("first", a, inputs)
    second, second_generator, logits = private_copy("second", b, inputs)
    both_built = not isinstance(a, nn.Module) and not isinstance(b, nn.Module)

    models = (first, second)
    calls = [trace(perturb_constants(copy.deepcopy(model)), inputs) for model in models]
    counterparts, unmatched = align(*calls)

    return Pair(
        a=first,
        b=second,
        inputs=inputs,
        labels=torch.arange(len(inputs), device=inputs.device) % logits.shape[-1],
        generators=(first_generator, second_generator) if both_built else None,
        counterparts=counterparts,
        unmatched=unmatched,
        shared_modules=[path or "itself" for path in map(first_shared_module, models) if path is not None],
        unused=[
            path
            for model, run in zip(models, calls, strict=True)
            for path, module in model.named_modules()
            if own_shapes(module) and path not in {call.path for call in run}
        ],
    )


def private_copy(which: str, network: Network, inputs: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A private copy of the network in eval mode, the random generator's state after building it, and its logits.

    Raises TypeError for anything that is not a network, or that returns anything but a tensor of logits; RuntimeError
    for a network that does not run on these inputs.
    """
    torch.manual_seed(0)
    model = network() if callable(network) and not isinstance(network, nn.Module) else network
    generator = torch.get_rng_state()
    if not isinstance(model, nn.Module):
        raise TypeError(f"compare takes networks or functions that build them, got a {type(model).__name__}")

    model = getattr(model, "_orig_mod", model)  # the network inside torch.compile's wrapper
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"the {which} network is a TorchScript program; give the network that it was made from")
    model = copy.deepcopy(model).to(inputs.device).float().eval()

    try:
        with torch.no_grad():
            output = model(inputs.clone())
    except RuntimeError as error:
        shape = " x ".join(map(str, inputs.shape))
        raise RuntimeError(f"the {which} network does not run on images of {shape}: {with_place(error)}") from error
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{type(model).__name__} returns a {type(output).__name__}, not a tensor; wrap it in a module that "
            "returns the logits"
        )
    return model, generator, output


def first_shared_module(model: nn.Module) -> str | None:
    """Path of the first module that holds several weights of its own, or one beside modules with weights."""
    for path, module in model.named_modules():
        weights = [shape for shape in own_shapes(module).values() if len(shape) > 1]
        inside = any(own_shapes(child) for child in module.modules() if child is not module)
        if len(weights) > 1 or (weights and inside):
            return path
    return None


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
