"""A ResNet made fast for predictions on a CPU: each convolution with its BatchNorm, addition and ReLU in one operation.

The operations are oneDNN's, which torch.compile chooses for such a network too. They are called from a torch.fx graph,
so that nothing is compiled and any batch size works.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from resnet_core.foundation.errors import first_line, last_line
from resnet_core.inference.fusion import FusedOperation, fused, traced
from resnet_core.inference.quantize import Grid, observed_grids, quantized
from resnet_core.models.registry import build_on_meta
from resnet_core.weights import WeightsError, WeightsInfo, write_weights
from resnet_core.weights.containers import read_container
from resnet_core.weights.pretrained import check_config

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
    ResNets. Raises ValueError for others, naming what they have in addition, and for inputs that do not fit.
    """
    if not isinstance(model, nn.Module) or not isinstance(example_inputs, Tensor):
        raise TypeError(
            "optimize_for_inference takes a network and a tensor of images, got a "
            f"{type(model).__name__} and a {type(example_inputs).__name__}"
        )
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype must be one of the words auto, {', '.join(DTYPES)}, got {dtype!r}")
    if (dtype == "int8") != (calibration is not None):
        raise ValueError("int8, and no other dtype, takes calibration: batches of inputs like those to come")
    if not torch.backends.mkldnn.is_available():
        raise ValueError("this build of torch lacks oneDNN, which optimize_for_inference needs; use the model as it is")
    if isinstance(model, OptimizedNetwork):
        raise ValueError(f"this network is optimized already, in {model.dtype}; give the model that it was made of")
    check_images("example_inputs", example_inputs)
    inputs = example_inputs.detach().cpu().float()
    original = copy.deepcopy(model).cpu().float().eval()

    with torch.no_grad():
        network = traced(original)
        exact = exact_outputs(original, inputs)
        network = fused(network, inputs)
        grids = {} if calibration is None else observed_grids(network, checked(calibration))
        if grids:
            network = quantized(network, grids)

    candidates = [OptimizedNetwork(network, name, grids) for name in (CANDIDATES if dtype == "auto" else (dtype,))]
    for candidate in candidates:
        candidate.error = relative_error(candidate(inputs), exact)
    return fastest(candidates, inputs) if dtype == "auto" else candidates[0]


def check_images(name: str, images: Any) -> None:
    """Raises ValueError for anything but images `[N, C, H, W]` of finite numbers."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        found = f"shape {list(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(f"{name} must be a tensor [N, C, H, W], got {found}")
    if not images.isfinite().all():
        raise ValueError(f"{name} must be finite, and some of these numbers are not")


def checked(calibration: Iterable[Any]) -> Iterator[Tensor]:
    """The batches. Raises ValueError for others, such as the pairs that a DataLoader gives."""
    if isinstance(calibration, Tensor):
        raise ValueError("calibration must be several batches of inputs; put a single one into a list")
    for images in calibration:
        if isinstance(images, Sequence):
            raise ValueError(
                f"a batch of calibration must be a tensor [N, C, H, W], got a {type(images).__name__}; of a loader's "
                "pairs take the images alone: [images for images, labels in loader]"
            )
        check_images("a batch of calibration", images)
        yield images


def exact_outputs(model: nn.Module, inputs: Tensor) -> Any:
    """The model's outputs in float64. Raises ValueError where it does not take the inputs, or gives no finite ones."""
    try:
        outputs = copy.deepcopy(model).double()(inputs.double())
    except RuntimeError as error:
        raise ValueError(f"the model does not take example_inputs {list(inputs.shape)}: {first_line(error)}") from error
    if not all(output.isfinite().all() for output in tree_leaves(outputs)):
        raise ValueError("the model's outputs for example_inputs are not finite: its weights are damaged or diverged")
    return outputs


class OptimizedNetwork(nn.Module):
    """What `optimize_for_inference` returns. It prints its precision and its error."""

    dtype: str
    """The precision in which it computes: float32, bfloat16 or int8."""
    error: float | None
    """The largest difference of an output from a float64 run of the model, on the example, relative to the largest;
    None for a network that was read from a file."""
    seconds: dict[str, float]
    """What "auto" measured: precision -> seconds for the example; empty where the precision was given."""

    def __init__(self, network: fx.GraphModule, dtype: str, grids: Mapping[str, Grid]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).to(DTYPES[dtype]).requires_grad_(False)
        self.dtype = dtype
        self.grids = dict(grids)
        self.error, self.seconds = None, {}
        self.eval()

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
        convolutions = sum(isinstance(module, FusedOperation) for module in self.modules())
        seconds = ", ".join(f"{name} {seconds:.4f} s" for name, seconds in self.seconds.items())
        chosen = f", the faster for the example ({seconds})" if seconds else ""
        error = "" if self.error is None else f"; error {self.error:.1e} of the largest output"
        return f"OptimizedNetwork: {convolutions} convolutions in {self.dtype}{chosen}{error}"


def relative_error(outputs: Any, exact: Any) -> float:
    """The largest difference of two networks' outputs, relative to the largest magnitude of the second."""
    pairs = list(zip(tree_leaves(outputs), tree_leaves(exact), strict=True))
    largest = max(float(each.abs().max()) for _, each in pairs)
    return max(float((output.double() - each).abs().max()) for output, each in pairs) / (largest or 1.0)


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


def write_quantized(path: str | Path, network: OptimizedNetwork, info: WeightsInfo) -> None:
    """Writes a network in int8 as a safetensors file, a quarter of the size; `info` is that of its weights.

    Raises ValueError for another precision, and what `write_weights` raises.
    """
    if network.dtype != "int8":
        raise ValueError(f"only int8 has a file of its own, and this network is in {network.dtype}: optimize it anew")
    write_weights(path, network.network.state_dict(), replace(info, ranges=dict(network.grids)))


def read_quantized(path: str | Path) -> tuple[OptimizedNetwork, WeightsInfo]:
    """A network that `write_quantized` wrote, with the same outputs to the bit, and what is known about it.

    Raises WeightsError for another file, for a damaged one, and for one whose tensors do not fit its model.
    """
    container = read_container(path)
    info = WeightsInfo.from_metadata(container.metadata, str(path))
    if info is None or not info.ranges:
        raise WeightsError(f"{path} holds no network in int8; `resnet-core quantize` writes one")

    grids = {name: Grid(*grid) for name, grid in info.ranges.items()}
    if not all(0 < step < math.inf and 0 <= zero <= 255 for step, zero in grids.values()):
        raise WeightsError(f"{path} needs finite steps above 0 and zeros from 0 to 255; quantize it again")

    try:
        config = check_config(info.config, str(path))
        size = (2, config.get("in_channels", 3), info.image_size, info.image_size)
        with torch.device("meta"):
            network = fused(traced(build_on_meta(info.model, **config).eval()), torch.empty(size))
            network = quantized(network, grids)
        wanted = {name: tensor.dtype for name, tensor in network.state_dict().items()}
        if {name: tensor.dtype for name, tensor in container.content.items()} != wanted:
            raise KeyError("other names or types of tensors")
        network.load_state_dict(container.content, assign=True)
    except (KeyError, RuntimeError, TypeError) as error:
        raise WeightsError(
            f"{path} does not fit a {info.model} in int8 of this version ({last_line(error)}); quantize it again"
        ) from error
    return OptimizedNetwork(network, "int8", grids), info


def head_of(model: nn.Module) -> nn.Linear:
    """A network's classifier: its last linear layer."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
