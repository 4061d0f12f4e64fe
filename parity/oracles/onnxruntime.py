"""onnxruntime: our models, exported to ONNX and run by an engine that knows nothing of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from parity.oracles.oracle import Oracle, noise
from resnet_core.builders import get_model
from resnet_core.comparison.trace import calibrate
from resnet_core.weights.libraries import IMAGE_SIZE, NETWORKS


class Session(nn.Module):
    """An ONNX file as a network; its weights are in the file."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Ours with BatchNorm statistics of random images, and its ONNX file in onnxruntime."""
    from resnet_core.inference.export import export
    from resnet_core.inference.formats import load_onnx

    ours = get_model(name)
    calibrate(ours, noise(4))
    with TemporaryDirectory() as folder:
        file = Path(folder, f"{name}.onnx")
        export(ours, file, format="onnx", image_size=IMAGE_SIZE)
        return ours, Session(load_onnx(file))


ORACLE = Oracle(package="onnxruntime", models=NETWORKS, pair=pair)
