"""The rungs: what is compared between our model and the reference, from names up to training steps.

A rung takes two builders, makes both models from the same seed and yields pairs that must be equal to the bit:
`(what, ours, reference)`. `judge` finds the first unequal pair and the largest difference. All on CPU in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from resnet_core.resnet import TABLE_1, WIDER

Builder = Callable[[], nn.Module]
Pairs = Iterator[tuple[str, Any, Any]]

TORCHVISION_MODELS = (*TABLE_1, *WIDER)


@dataclass(frozen=True)
class Verdict:
    """Whether all pairs were equal to the bit, the largest difference, and the first pair that was not equal."""

    passed: bool
    largest_difference: float
    first_divergence: str | None = None


def judge(pairs: Iterable[tuple[str, Any, Any]]) -> Verdict:
    """The verdict on a rung's pairs; a model that cannot even be compared (it raises) has failed."""
    largest, first = 0.0, None
    pairs = iter(pairs)
    while True:
        try:
            what, ours, reference = next(pairs)
        except StopIteration:
            return Verdict(first is None, largest, first)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            return Verdict(False, float("inf"), first or f"{type(error).__name__}: {error}")
        if not same_bits(ours, reference):
            first = first or what
            largest = max(largest, difference(ours, reference))


def same_bits(ours: Any, reference: Any) -> bool:
    if not (isinstance(ours, Tensor) and isinstance(reference, Tensor)):
        return bool(ours == reference)
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return False
    raw = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (ours, reference)]
    return torch.equal(*raw)


def difference(ours: Any, reference: Any) -> float:
    """Largest absolute difference of two tensors; infinite where there is none to tell."""
    if not (isinstance(ours, Tensor) and isinstance(reference, Tensor)) or ours.shape != reference.shape:
        return float("inf")
    largest = (ours.detach().double() - reference.detach().double()).abs().max().item()
    return largest if largest == largest else float("inf")


def built(ours: Builder, reference: Builder, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """Both models, each from the same seed; on the device "meta" without their values."""
    models = []
    for build in (ours, reference):
        torch.manual_seed(0)
        with torch.device(device):
            models.append(build())
    return models[0], models[1]


def images(seed: int = 0, batch: int = 2, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labels(model: nn.Module, seed: int = 0, batch: int = 2) -> Tensor:
    classes = model.fc.out_features
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))


def tensors_of(what: str, ours: dict[str, Tensor], reference: dict[str, Tensor]) -> Pairs:
    yield f"{what}: names", list(ours), list(reference)
    for name in reference:
        yield f"{what}: {name}", ours.get(name), reference[name]


def calibrate(model: nn.Module) -> None:
    """One training-mode forward, so that the running statistics fit the network: without, untrained logits explode."""
    model.train()
    with torch.no_grad():
        model(images(seed=1, batch=4))
    model.eval()


def names_and_shapes(ours: Builder, reference: Builder) -> Pairs:
    """State-dict keys in order, their shapes and dtypes."""
    a, b = (shapes_and_dtypes(model) for model in built(ours, reference, "meta"))
    yield "keys in order", list(a), list(b)
    for name in b:
        yield f"{name}: shape, dtype", a.get(name), b[name]


def shapes_and_dtypes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}


def parameter_count(ours: Builder, reference: Builder) -> Pairs:
    a, b = (sum(p.numel() for p in model.parameters() if p.requires_grad) for model in built(ours, reference, "meta"))
    yield "trainable parameters", a, b


def seeded_weights(ours: Builder, reference: Builder) -> Pairs:
    """Every parameter and buffer after construction from the same seed, and the generator's state after it."""
    torch.manual_seed(0)
    a, rng_a = ours().state_dict(), torch.get_rng_state()
    torch.manual_seed(0)
    b, rng_b = reference().state_dict(), torch.get_rng_state()
    yield from tensors_of("initial", a, b)
    yield "random generator after construction", rng_a, rng_b


def strict_loading(ours: Builder, reference: Builder) -> Pairs:
    """Each model loads the other's state dict strictly and then gives the other's logits."""
    a, b = built(ours, reference)
    for what, target, source in (("reference's into ours", a, b), ("ours into the reference", b, a)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.neg_()
            target.load_state_dict(source.state_dict(), strict=True)
            pair = (a.eval()(images()), b.eval()(images()))
        yield what, *pair


def eval_logits(ours: Builder, reference: Builder) -> Pairs:
    """Logits in eval mode after the same calibration of the BatchNorm statistics."""
    a, b = built(ours, reference)
    for model in (a, b):
        calibrate(model)
    with torch.no_grad():
        yield "logits", a(images()), b(images())


def train_logits(ours: Builder, reference: Builder) -> Pairs:
    """Logits in training mode."""
    a, b = built(ours, reference)
    with torch.no_grad():
        yield "logits", a(images()), b(images())


def graph_nodes(ours: Builder, reference: Builder) -> Pairs:
    """Every torch.fx node name of the reference exists in ours and holds the same tensor (eval mode)."""
    a, b = built(ours, reference)
    for model in (a, b):
        calibrate(model)
    expected = get_graph_node_names(b)[1]
    found = set(get_graph_node_names(a)[1])
    yield "node names missing in ours", [name for name in expected if name not in found], []
    with torch.no_grad():
        extracted = [create_feature_extractor(model, expected).eval()(images()) for model in (a, b)]
    yield from tensors_of("node", *extracted)


def gradients_and_buffers(ours: Builder, reference: Builder) -> Pairs:
    """Loss, the gradient of every parameter and of the input, and every buffer after one training-mode pass."""
    outcomes = []
    for model in built(ours, reference):
        x = images().requires_grad_()
        loss = F.cross_entropy(model(x), labels(model))
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        outcomes.append((loss, x.grad, gradients, dict(model.named_buffers())))
    (loss_a, x_a, gradients_a, buffers_a), (loss_b, x_b, gradients_b, buffers_b) = outcomes
    yield "loss", loss_a, loss_b
    yield "gradient of the input", x_a, x_b
    yield from tensors_of("gradient", gradients_a, gradients_b)
    yield from tensors_of("buffer", buffers_a, buffers_b)


def sgd_steps(ours: Builder, reference: Builder) -> Pairs:
    """Every loss of five steps of SGD with momentum and weight decay, and the weights after them."""
    outcomes = []
    for model in built(ours, reference):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        losses = []
        for step in range(5):
            loss = F.cross_entropy(model(images(seed=step)), labels(model, seed=step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss)
        outcomes.append((losses, model.state_dict()))
    (losses_a, state_a), (losses_b, state_b) = outcomes
    for step, (loss_a, loss_b) in enumerate(zip(losses_a, losses_b, strict=True), 1):
        yield f"loss of step {step}", loss_a, loss_b
    yield from tensors_of("after 5 steps", state_a, state_b)


@dataclass(frozen=True)
class Rung:
    """One column of the report: how to compare, and for which models."""

    compare: Callable[[Builder, Builder], Pairs]
    models: tuple[str, ...] = TORCHVISION_MODELS


RUNGS: dict[str, Rung] = {
    "names, shapes": Rung(names_and_shapes),
    "parameters": Rung(parameter_count),
    "seeded weights": Rung(seeded_weights),
    "eval logits": Rung(eval_logits),
    "train logits": Rung(train_logits),
    "strict loading": Rung(strict_loading),
    "fx nodes": Rung(graph_nodes),
    "gradients, buffers": Rung(gradients_and_buffers, ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2")),
    "5 SGD steps": Rung(sgd_steps, ("resnet18", "resnet50")),
}
