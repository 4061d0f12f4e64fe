"""A model as one file that runs without this package. The file is compared with the model before it takes its name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from resnet_core.foundation.atomic import replacing
from resnet_core.foundation.errors import first_line
from resnet_core.foundation.precision import FACTOR, float_errors
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.weights.info import KEY, WeightsInfo

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["onnx", "torch-export", "aoti"]

EXAMPLE_BATCH = 2
CHECKED_BATCHES = (1, 5)  # not the example's, so that a batch that became a constant shows
EARLIER_OPSETS = range(11, 18)  # of torch's earlier ONNX exporter


class ExportError(ValueError):
    """A format that cannot be written here, that does not support the model, or whose file computes something else."""


@dataclass(frozen=True)
class Export:
    """An exported file, and how close its logits are to the model's on random images."""

    path: Path
    format: str
    bytes: int
    opset: int | None
    """ONNX's version of its operators; None in the other formats."""
    largest_difference: float
    """Between the file's logits and the float32 model's."""
    largest_logit: float
    """The largest magnitude of a logit; the other numbers are relative to it."""
    error: float
    """Largest difference of the file's logits from a float64 run of the model."""
    allowed_error: float

    def __str__(self) -> str:
        opset = f" opset {self.opset}" if self.opset else ""
        return (
            f"{self.path}: {self.format}{opset}, {self.bytes / 1e6:.1f} MB; largest difference "
            f"{self.largest_difference:.1e} at logits up to {self.largest_logit:.3g}"
        )


@dataclass(frozen=True)
class Request:
    """What an exporter writes: a network in evaluation mode, with images to trace it with."""

    network: nn.Module
    example: Tensor
    dynamic_size: bool = False
    """Whether height and width are free, as the batch is."""
    opset: int | None = None
    """One of EARLIER_OPSETS for ONNX; None: the one that this torch writes by default."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Texts by name that the file carries."""


def export(
    model: nn.Module, out: str | Path, *, format: Format, image_size: int = 224, channels: int = 3,
    opset: int | None = None, dynamic_size: bool = False, info: WeightsInfo | None = None,
) -> Export:  # fmt: skip
    """Writes the file `out`: `[N, channels, image_size, image_size]` -> logits in float32 on the CPU, for any N.

    With `dynamic_size` the file takes any height and width that leave the last stage more than one pixel each way: from
    33 for a ResNet. `opset` is one of ONNX's versions 11 to 17 for runtimes that lack the newer default. `info`, as
    `load_model` returns it, is written into the file. The model is exported in evaluation mode, and is itself not
    changed. The file takes its name only if its error against a float64 run of the model, on random images, is at most
    FACTOR times the float32 model's own.
    Raises ExportError if it is larger, or if the format cannot be written; ValueError or OSError for arguments that do
    not fit.
    """
    path = Path(out)
    exporter = find_exporter(path, format, opset)
    network = copy.deepcopy(model).cpu().float().eval()
    example, *batches = seeded_images(image_size, channels, dynamic_size)
    metadata = {KEY: info.to_metadata()[KEY]} if info else {}
    request = Request(network, example, dynamic_size, opset, metadata)

    with torch.no_grad(), beside(path) as folder:
        logits = run_model(network, batches)
        exact = run_model(copy.deepcopy(network).double(), [images.double() for images in batches])

        file = Path(folder, path.name)
        try:
            written_opset = exporter.write(request, file)
            written = torch.cat([exporter.load(file)(images) for images in batches])
            measured = measure_errors(written, logits, exact)
        except OSError:
            raise
        except Exception as error:  # exporters and runtimes have no family of errors in common
            larger = "; with dynamic_size the last stage needs more than one pixel: take a larger image_size"
            raise ExportError(
                f"{path} was not written: {format} failed on this model ({first_line(error)})"
                f"{larger if dynamic_size else ''}"
            ) from error

        result = Export(path, format, file.stat().st_size, written_opset, *measured)
        check(result)
        with replacing(path) as aside:
            file.replace(aside)
    return result


def find_exporter(path: Path, format: str, opset: int | None = None) -> Exporter:
    """The exporter of a format that can be written, here and to `path`. Raises ValueError or OSError if it cannot."""
    if format not in EXPORTERS:
        raise ValueError(f"unknown format {format!r}; {did_you_mean(format, EXPORTERS)}")
    exporter = EXPORTERS[format]
    if opset is not None and format != "onnx":
        raise ValueError(f"opset {opset} needs the format onnx, got {format}; leave the opset out")
    if opset is not None and opset not in EARLIER_OPSETS:
        raise ValueError(
            f"opset must be {EARLIER_OPSETS[0]} to {EARLIER_OPSETS[-1]}, got {opset}; leave it out for the newer one "
            "that this torch writes by default"
        )

    # The file's place.
    if path.suffix != exporter.suffix:
        raise ValueError(
            f"{path} must end in {exporter.suffix} for the format {format}; name it {path.stem}{exporter.suffix}, or "
            f"choose another --format of {', '.join(EXPORTERS)}"
        )
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it or choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; create it, or choose another place for {path.name}")

    lacking = exporter.lacks()
    if lacking:
        raise ExportError(f"format {format} needs {lacking}")
    return exporter


def beside(path: Path) -> TemporaryDirectory[str]:
    """A folder on the file system of `path`: exporters insist on a file's ending, and a rename must not copy."""
    return TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")


def seeded_images(image_size: int, channels: int, dynamic_size: bool = False) -> list[Tensor]:
    """Normally distributed images, the same in every run: a batch to export with, and those to check with."""
    if min(image_size, channels) < 1:
        raise ValueError(f"image_size and channels must be at least 1, got {image_size} and {channels}")
    size = image_size
    shapes = [(batch, channels, size, size) for batch in (EXAMPLE_BATCH, *CHECKED_BATCHES)]
    if dynamic_size:  # two sizes more to check, none of them the example's
        shapes[0] = (EXAMPLE_BATCH, channels, size + 32, size + 64)
        shapes += [(1, channels, size + 17, 2 * size), (2, channels, 2 * size, size + 40)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def run_model(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """The logits of all batches, one row per image. Raises ValueError where the model fails or they are not finite."""
    try:
        logits = torch.cat([model(images) for images in batches])
    except RuntimeError as error:
        shape = " x ".join(map(str, batches[0].shape[1:]))
        raise ValueError(
            f"the model does not take images of {shape} ({first_line(error)}); pass its own channels and image_size"
        ) from error
    if not logits.isfinite().all():
        raise ExportError("the model's logits on random images are not finite: its weights are damaged or diverged")
    return logits


def capture(request: Request) -> ExportedProgram:
    """The model as a graph of operators for any batch, without this machine's folders."""
    from torch.export import Dim, export

    free: dict[int, Any] = {0: Dim("batch", min=1)}
    if request.dynamic_size:
        free |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = export(request.network, (request.example,), dynamic_shapes=(free,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def measure_errors(written: Tensor, logits: Tensor, exact: Tensor) -> tuple[float, float, float, float]:
    """Largest difference and logit, error and allowed error, as in `Export`. Raises RuntimeError for unlike shapes."""
    written, logits, exact = torch.stack([written.double(), logits.double(), exact])
    error, model_error = float_errors(written, logits, exact)
    return (written - logits).abs().max().item(), exact.abs().max().item(), error, FACTOR * model_error


def check(result: Export) -> None:
    """Raises ExportError for logits further from the float64 run than is allowed, or not finite."""
    if not result.error <= result.allowed_error:  # also where the error is nan
        raise ExportError(
            f"{result.path} was not written: the {result.format} file computes something else. With logits up to "
            f"{result.largest_logit:.3g} it differs from a float64 run of the model by {result.error:.1e}, and "
            f"{result.allowed_error:.1e} is allowed; choose another format"
        )


def write_onnx(request: Request, file: Path) -> int:
    import onnx

    free = {0: "batch", 2: "height", 3: "width"} if request.dynamic_size else {0: "batch"}
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "verbose": False}
    if request.opset is None:
        torch.onnx.export(capture(request), f=file, **names, dynamic_shapes=(free,), dynamo=True, external_data=False)
    else:
        with warnings.catch_warnings(action="ignore"):  # deprecation, and constants that are not folded
            torch.onnx.export(
                request.network, (request.example,), str(file), **names, dynamo=False, opset_version=request.opset,
                dynamic_axes={"images": free, "logits": {0: "batch"}},
            )  # fmt: skip

    written = onnx.load(file)
    if request.metadata:
        onnx.helper.set_model_props(written, request.metadata)
        onnx.save(written, file)
    return next(each.version for each in written.opset_import if not each.domain)


def load_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def lacks_onnx() -> str:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    return f"{', '.join(missing)}: pip install 'resnet-core[export]'" if missing else ""


def write_torch_export(request: Request, file: Path) -> None:
    from torch.export import save

    save(capture(request), file, extra_files=dict(request.metadata))


def load_torch_export(file: Path) -> Callable[[Tensor], Tensor]:
    from torch.export import load

    return load(file).module()


def write_aoti(request: Request, file: Path) -> None:
    # Without dynamic_threads the file would always use as many threads as the process that exported it.
    options = {"cpp.dynamic_threads": True, "aot_inductor.metadata": dict(request.metadata)}
    torch._inductor.aoti_compile_and_package(capture(request), package_path=str(file), inductor_configs=options)


def load_aoti(file: Path) -> Callable[[Tensor], Tensor]:
    return torch._inductor.aoti_load_package(str(file))


def lacks_aoti() -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler: install g++, or name one in the environment variable CXX"
    return ""


@dataclass(frozen=True)
class Exporter:
    """How a format is written and run, and what this machine lacks for it: a text with the remedy, or an empty one."""

    suffix: str
    write: Callable[[Request, Path], int | None]
    """Returns ONNX's opset."""
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    lacks: Callable[[], str]


EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(".onnx", write_onnx, load_onnx, lacks_onnx),
    "torch-export": Exporter(".pt2", write_torch_export, load_torch_export, lambda: ""),
    "aoti": Exporter(".pt2", write_aoti, load_aoti, lacks_aoti),
}
