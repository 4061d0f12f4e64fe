"""A model as one file that runs without this package. The file is compared with the model before it takes its name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from resnet_core.foundation.atomic import replacing
from resnet_core.foundation.errors import first_line
from resnet_core.foundation.precision import FACTOR
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.inference.formats import EXPORTERS, Exporter, Format, Precision, Request
from resnet_core.weights.info import KEY, WeightsInfo

EXAMPLE_BATCH = 2
CHECKED_BATCHES = (1, 5)  # not the example's, so that a batch that became a constant shows
INT8_ERROR = 0.25  # of the largest logit
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EARLIER_OPSETS = range(11, 18)  # of torch's earlier ONNX exporter


class ExportError(ValueError):
    """A format that cannot be written here, that does not support the model, or whose file computes something else."""


@dataclass(frozen=True)
class Export:
    """An exported file, and how close its logits are to the model's on random images."""

    path: Path
    format: str
    precision: str
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
        precision = "" if self.precision == "float32" else f" in {self.precision}"
        return (
            f"{self.path}: {self.format}{opset}{precision}, {self.bytes / 1e6:.1f} MB; largest difference "
            f"{self.largest_difference:.1e} at logits up to {self.largest_logit:.3g}"
        )


def export(
    model: nn.Module, out: str | Path, *, format: Format, precision: Precision = "float32",
    calibration: Sequence[Tensor] | None = None, image_size: int = 224, channels: int = 3,
    opset: int | None = None, dynamic_size: bool = False, info: WeightsInfo | None = None,
) -> Export:  # fmt: skip
    """Writes the file `out`: `[N, channels, image_size, image_size]` -> logits in float32 on the CPU, for any N.

    With `dynamic_size` the file takes any height and width that leave the last stage more than one pixel each way: from
    33 for a ResNet. `opset` is one of ONNX's versions 11 to 17 for runtimes that lack the newer default. `info`, as
    `load_model` returns it, is written into the file. The model is exported in evaluation mode, and is itself not
    changed. The file takes its name only if its error against a float64 run of the model, on random images, is at most
    FACTOR times the model's own in float32 or, with the precision bfloat16, in that. int8 needs `calibration`: batches
    of images like those to come, on the first of which the error may be at most INT8_ERROR of the largest logit.
    Raises ExportError if it is larger, or if the format cannot be written; ValueError or OSError for arguments that do
    not fit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"export takes a network, got a {type(model).__name__}; load_model(FILE) returns one")
    path = Path(out)
    exporter = find_exporter(path, format, opset, precision)
    check_calibration(precision, calibration, dynamic_size)
    network = copy.deepcopy(model).cpu().float().eval()
    example, *batches = seeded_images(image_size, channels, dynamic_size)
    if calibration:
        batches = [calibration[0][:batch] for batch in CHECKED_BATCHES]
    metadata = {KEY: info.to_metadata()[KEY]} if info else {}
    request = Request(
        network, example, dynamic_size, opset, precision=precision, calibration=calibration or (), metadata=metadata
    )

    with torch.no_grad(), beside(path) as folder:
        logits = run_model(network, batches)
        exact = run_model(copy.deepcopy(network).double(), [images.double() for images in batches])

        file = Path(folder, path.name)
        try:
            written_opset = exporter.write(request, file)
            written = torch.cat([exporter.load(file)(images) for images in batches])
            allowed = allowed_error(precision, network, batches, logits, exact)
            measured = (*measure_errors(written, logits, exact), allowed)
        except OSError:
            raise
        except Exception as error:  # exporters and runtimes have no family of errors in common
            larger = "; with dynamic_size the last stage needs more than one pixel: take a larger image_size"
            raise ExportError(
                f"{path} was not written: {format} failed on this model ({first_line(error)})"
                f"{larger if dynamic_size else ''}"
            ) from error

        # The weights of OpenVINO's graph lie beside it, and have to be there when it comes.
        files = [*Path(folder).glob("*.bin"), file]
        size = sum(each.stat().st_size for each in files)
        result = Export(path, format, precision, size, written_opset, *measured)
        check(result)
        for each in files:
            with replacing(path.with_suffix(each.suffix)) as aside:
                each.replace(aside)
    return result


def find_exporter(path: Path, format: str, opset: int | None = None, precision: str = "float32") -> Exporter:
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

    if precision not in exporter.precisions:
        others = [name for name, each in EXPORTERS.items() if precision in each.precisions]
        remedy = f"for {precision} choose --format {' or '.join(others)}" if others else "choose one of these"
        raise ValueError(
            f"format {format} is written in {' or '.join(exporter.precisions)}, got {precision!r}; {remedy}"
        )

    # The file's place.
    if path.suffix != exporter.suffix:
        raise ValueError(
            f"{path} must end in {exporter.suffix} for the format {format}; name it {path.stem}{exporter.suffix}, or "
            f"choose another --format of {', '.join(EXPORTERS)}"
        )
    for each in (path, path.with_suffix(".bin")) if format == "openvino" else (path,):
        if each.exists():
            raise FileExistsError(f"{each} exists; remove it or choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder; create it, or choose another place for {path.name}")

    lacking = exporter.lacks()
    if lacking:
        raise ExportError(f"format {format} needs {lacking}")
    return exporter


def check_calibration(precision: str, calibration: Sequence[Tensor] | None, dynamic_size: bool) -> None:
    """Raises ValueError where int8 lacks images to calibrate with, or where another precision is given some."""
    if (precision == "int8") != bool(calibration):
        raise ValueError("precision int8, and no other, takes calibration: batches of images like those to come")
    if precision == "int8" and dynamic_size:
        raise ValueError("int8 is calibrated for one image size; leave dynamic_size out")


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


def measure_errors(written: Tensor, logits: Tensor, exact: Tensor) -> tuple[float, float, float]:
    """Largest difference and logit, and error, as in `Export`. Raises RuntimeError for unlike shapes."""
    written, logits, exact = torch.stack([written.double(), logits.double(), exact])
    return (written - logits).abs().max().item(), exact.abs().max().item(), (written - exact).abs().max().item()


def allowed_error(
    precision: Precision, network: nn.Module, batches: Sequence[Tensor], logits: Tensor, exact: Tensor
) -> float:
    """The largest error of a file against float64, of a network whose logits in float32 are these."""
    largest = exact.abs().max().item()
    if precision == "int8":
        return INT8_ERROR * largest
    if precision == "bfloat16":
        logits = run_model(copy.deepcopy(network).bfloat16(), [images.bfloat16() for images in batches])
    model_error = (logits.double() - exact).abs().max().item()
    return FACTOR * max(model_error, largest * torch.finfo(DTYPES[precision]).eps / 2)


def check(result: Export) -> None:
    """Raises ExportError for logits further from the float64 run than is allowed, or not finite."""
    if not result.error <= result.allowed_error:  # also where the error is nan
        raise ExportError(
            f"{result.path} was not written: the {result.format} file computes something else. With logits up to "
            f"{result.largest_logit:.3g} it differs from a float64 run of the model by {result.error:.1e}, and "
            f"{result.allowed_error:.1e} is allowed; choose another format"
        )
