"""A ResNet made fast for predictions on a CPU: each convolution with its BatchNorm, addition and ReLU in one operation.

The operations are oneDNN's, which torch.compile chooses for such a network too. They are called from a torch.fx graph,
so that nothing is compiled and any batch size works.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from resnet_core.inference.fusion import OrderedWeights, fused_graph
from resnet_core.inference.quantize import quantized

Dtype = Literal["auto", "float32", "bfloat16", "int8"]
# Precision of the convolutions -> of the inputs, of the head and of what lies between.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
CANDIDATES = ("float32", "bfloat16")  # of "auto"
TRIALS = 5  # of each


def optimize_for_inference(
    model: nn.Module, example_inputs: Tensor, dtype: Dtype = "auto", calibration: Iterable[Tensor] | None = None
) -> OptimizedNetwork:
    """A network that computes what `model` does in evaluation mode, several times as fast on a CPU.

    It takes float32 images `[N, C, H, W]` of any N, fastest in the shape of `example_inputs`, and returns float32.
    "auto" measures float32 and bfloat16 on these inputs and takes the faster; "int8" needs `calibration`, some batches
    of inputs like those to come, and the extra `quantize`. `model` stays as it is. Every ResNet of this package works,
    and so does any network of convolutions, BatchNorm, ReLU, additions, pools and a linear head, such as torchvision's
    ResNets. Raises ValueError for others, naming what they have in addition.
    """
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, got {dtype!r}")
    if (dtype == "int8") != (calibration is not None):
        raise ValueError("int8, and no other dtype, takes calibration: batches of inputs like those to come")
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this build of torch lacks oneDNN, which optimize_for_inference needs; use the model as it is")
    inputs = example_inputs.detach().cpu().float()
    original = copy.deepcopy(model).cpu().float().eval()

    with torch.no_grad():
        network = fused_graph(original, inputs)
        if calibration is not None:
            network = quantized(network, calibration)
        exact = original.double()(inputs.double())

    candidates = [
        OptimizedNetwork(network, name, example=(inputs, exact))
        for name in (CANDIDATES if dtype == "auto" else (dtype,))
    ]
    return fastest(candidates, inputs) if dtype == "auto" else candidates[0]


class OptimizedNetwork(nn.Module):
    """What `optimize_for_inference` returns. It prints its precision and its error."""

    dtype: str
    """The precision in which it computes: float32, bfloat16 or int8."""
    error: float
    """The largest difference of an output from a float64 run of the model, on the example, relative to the largest."""
    seconds: dict[str, float]
    """What "auto" measured: precision -> seconds for the example; empty where the precision was given."""

    def __init__(self, network: fx.GraphModule, dtype: str, example: tuple[Tensor, Any]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(DTYPES[dtype]).requires_grad_(False)
        self.dtype = dtype
        self.seconds = {}
        inputs, exact = example
        self.error = relative_error(self(inputs), exact)

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Any:
        """The model's outputs, in float32."""
        outputs = self.network(inputs.to(DTYPES[self.dtype], memory_format=torch.channels_last))
        return tree_map_only(Tensor, lambda output: output.float(), outputs)

    def train(self, mode: bool = True) -> OptimizedNetwork:
        """Raises ValueError for `mode` True."""
        if mode:
            raise ValueError("an optimized network only predicts; train the model that it was made of")
        return super().train(False)

    def __repr__(self) -> str:
        convolutions = sum(isinstance(module, OrderedWeights) for module in self.modules())
        seconds = ", ".join(f"{name} {seconds:.4f} s" for name, seconds in self.seconds.items())
        chosen = f", the faster for the example ({seconds})" if seconds else ""
        error = f"error {self.error:.1e} of the largest output"
        return f"OptimizedNetwork: {convolutions} convolutions in {self.dtype}{chosen}; {error}"


def relative_error(outputs: Any, exact: Any) -> float:
    """The largest difference of two networks' outputs, relative to the largest magnitude of the second."""
    pairs = list(zip(tree_leaves(outputs), tree_leaves(exact), strict=True))
    largest = max(float(each.abs().max()) for _, each in pairs)
    return max(float((output.double() - each).abs().max()) for output, each in pairs) / largest


def fastest(candidates: Sequence[OptimizedNetwork], inputs: Tensor) -> OptimizedNetwork:
    """The candidate that takes the least time for the inputs; they take turns. It keeps what was measured."""
    seconds: dict[str, list[float]] = {candidate.dtype: [] for candidate in candidates}
    for _ in range(TRIALS):
        for candidate in candidates:
            began = time.perf_counter()
            candidate(inputs)
            seconds[candidate.dtype].append(time.perf_counter() - began)

    medians = {dtype: statistics.median(trials) for dtype, trials in seconds.items()}
    chosen = min(candidates, key=lambda candidate: medians[candidate.dtype])
    chosen.seconds = medians
    return chosen
