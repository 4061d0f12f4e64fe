"""What torchvision's users rely on beyond a network's logits: names, files, graph nodes. On the CPU in float32.

A check takes two builders and yields pairs that must be equal to the bit: `(what, ours, reference)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from resnet_core.comparison.rungs import Rung
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.precision import same_bits

Builder = Callable[[], nn.Module]
Pairs = Iterator[tuple[str, Any, Any]]


def judge(name: str, pairs: Pairs) -> Rung:
    """The rung of a check's pairs. A model that raises has failed."""
    try:
        for what, ours, reference in pairs:
            if not equal(ours, reference):
                return Rung(name=name, status="differs", largest_difference=difference(ours, reference), detail=what)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return Rung(name=name, status="differs", detail=f"{type(error).__name__}: {error}")
    return Rung(name=name, status="equal", largest_difference=0.0)


def equal(ours: Any, reference: Any) -> bool:
    both_tensors = isinstance(ours, Tensor) and isinstance(reference, Tensor)
    return same_bits(ours, reference) if both_tensors else bool(ours == reference)


def difference(ours: Any, reference: Any) -> float:
    """Largest absolute difference of two tensors; infinite for anything that has no difference."""
    if not (isinstance(ours, Tensor) and isinstance(reference, Tensor)) or ours.shape != reference.shape:
        return float("inf")
    largest = (ours.detach().double() - reference.detach().double()).abs().max().item()
    return largest if largest == largest else float("inf")


def built(ours: Builder, reference: Builder, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """Both models, each from the same seed; on the device "meta" they have no values."""
    models = []
    for build in (ours, reference):
        torch.manual_seed(0)
        with torch.device(device):
            models.append(build())
    return models[0], models[1]


def images(seed: int = 0, batch: int = 2, size: int = 64) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def names_and_shapes(ours: Builder, reference: Builder) -> Pairs:
    """State-dict keys in order, their shapes and dtypes."""
    a, b = (shapes_and_dtypes(model) for model in built(ours, reference, "meta"))
    yield "keys in order", list(a), list(b)
    for name in b:
        yield f"{name}: shape, dtype", a.get(name), b[name]


def shapes_and_dtypes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}


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


def graph_nodes(ours: Builder, reference: Builder) -> Pairs:
    """Every torch.fx node name of the reference exists in ours and holds the same tensor (eval mode)."""
    a, b = built(ours, reference)
    for model in (a, b):
        calibrate(model, images(seed=1, batch=4))
    expected = get_graph_node_names(b)[1]
    found = set(get_graph_node_names(a)[1])
    yield "node names missing in ours", [name for name in expected if name not in found], []
    with torch.no_grad():
        extracted = [create_feature_extractor(model, expected).eval()(images()) for model in (a, b)]
    for name, value in extracted[1].items():
        yield f"node {name}", extracted[0][name], value


DROP_IN: dict[str, Callable[[Builder, Builder], Pairs]] = {
    "state-dict keys in order": names_and_shapes,
    "strict loading": strict_loading,
    "fx nodes": graph_nodes,
}
