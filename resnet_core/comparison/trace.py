"""What a network computes, operation by operation: each call of torch with its arguments, tensors and line of code.

Operations are seen whatever calls them: a module, its `forward`, or a function that uses somebody else's weight.
What each of them reads and writes is kept as a fingerprint, not as a tensor.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from resnet_core.comparison.operations import IMAGES, Leaf, Trace, fingerprint, mapped
from resnet_core.comparison.recorder import Recorder


def trace(
    model: nn.Module,
    inputs: Tensor,
    *,
    exact: bool = True,
    fingerprints: bool = True,
    every: bool = True,
    gradients: bool = False,
    seed: int | None = None,
) -> Trace:
    """The operations of one forward in the model's mode. With `exact`, in float64 even where the model asks for less.

    In float64, rounding and difference are far apart. `seed` is that of the random generator. Without `every`, only the
    logits have a fingerprint. With `gradients`, torch builds the graph of the backward.
    """
    recorder = Recorder(model, exact, fingerprints and every, seed=seed)
    if seed is not None:
        torch.manual_seed(seed)
    inputs = inputs.detach().clone().to(torch.float64 if exact else inputs.dtype).requires_grad_(gradients)
    recorder.numbers[inputs] = IMAGES
    with torch.set_grad_enabled(gradients), uncompiled(), running_modules(recorder.stack), recorder:
        output = model(inputs)
    logits = output
    if not isinstance(output, Tensor):
        _, logits = place_of_logits(output) if model.training else (None, None)
        if logits is None:
            mode = "in training" if model.training else "in evaluation"
            raise TypeError(f"{type(model).__name__} returns a {type(output).__name__} {mode}, not a tensor")
    return Trace(
        operations=recorder.operations,
        output=recorder.numbers.get(logits, IMAGES),
        logits=fingerprint(logits) if fingerprints else None,
        casts=tuple(recorder.casts),
        leaves=tuple(recorder.used.values()),
        channels_last=recorder.channels_last,
        returned=type(output).__name__ if logits is not output else "tensor",
    )


def place_of_logits(output: Any) -> tuple[Any, Tensor | None]:
    """The index or key of the first matrix in a network's outputs, and that matrix; None twice where there is none."""
    items = output.items() if isinstance(output, Mapping) else enumerate(output) if isinstance(output, tuple) else ()
    found = ((key, each) for key, each in items if isinstance(each, Tensor) and each.dim() == 2)
    return next(found, (None, None))


def light(run: Trace) -> Trace:
    """The trace without its weights' values, which would keep a network in memory."""

    def without_value(each: Any) -> Any:
        return dataclasses.replace(each, value=each.value.to("meta")) if isinstance(each, Leaf) else each

    operations = [
        dataclasses.replace(each, arguments=mapped(without_value, dict(each.arguments)), call=(len, (), {}))
        for each in run.operations
    ]
    return dataclasses.replace(run, operations=operations, leaves=())


@contextmanager
def running_modules(stack: list[nn.Module]) -> Iterator[None]:
    """Inside this context the stack holds the modules that run at the moment, the innermost last."""

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()

    handles = [
        modules.register_module_forward_pre_hook(lambda module, inputs: stack.append(module)),
        modules.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def uncompiled() -> AbstractContextManager[None]:
    """A context in which compiled parts of a network run as they were written."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside this context torch computes in float64 even where a network asks for float32."""
    with uncompiled(), Recorder(nn.Module(), True, fingerprints=False, record=False):
        yield


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model. Both share what cannot be copied, such as a lock; of a computed tensor it has the value."""
    with suppress(TypeError, RuntimeError):
        return copy.deepcopy(model)

    shared: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value)
            except (TypeError, RuntimeError):
                shared[id(value)] = value.detach().clone() if isinstance(value, Tensor) else value
    return copy.deepcopy(model, shared)


@torch.no_grad()
def perturb_constants(model: nn.Module) -> nn.Module:
    """The model with noise on each parameter that was one constant, as the scales and shifts of new norms are.

    A scale of 0 silences a branch and lets different tensors be equal; scales of 1 are all alike.
    """
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if (parameter == parameter.flatten()[0]).all():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return model


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The model in evaluation mode, after its norms have seen the inputs: without that, untrained logits explode."""
    model.train()(inputs.clone())
    return model.eval()
