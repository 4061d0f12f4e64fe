"""The formats of exported files: how each is written, read back and run, and what it says of itself."""

from __future__ import annotations

import copy
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx, nn

from resnet_core.weights.info import KEY

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["onnx", "openvino", "torch-export", "aoti"]
Precision = Literal["float32", "bfloat16", "int8"]
Run = Callable[[Tensor], Tensor]

HINT = "INFERENCE_PRECISION_HINT"  # OpenVINO's name for the precision in which it computes


@dataclass(frozen=True)
class Request:
    """What an exporter writes: a network in evaluation mode, with images to trace it with."""

    network: nn.Module
    example: Tensor
    dynamic_size: bool = False
    """Whether height and width are free, as the batch is."""
    opset: int | None = None
    """One of EARLIER_OPSETS for ONNX; None: the one that this torch writes by default."""
    precision: Precision = "float32"
    calibration: Sequence[Tensor] = ()
    """For int8: batches of images like those to come."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Texts by name that the file carries."""


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

    if request.precision == "int8":
        quantize_onnx(file, request.calibration)
    written = onnx.load(file)
    if request.metadata:
        onnx.helper.set_model_props(written, request.metadata)
        onnx.save(written, file)
    return next(each.version for each in written.opset_import if not each.domain)


def quantize_onnx(file: Path, calibration: Sequence[Tensor]) -> None:
    """Puts steps to and from 8 bits around the operators (QDQ), with a step for each channel of the weights."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        rest = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.rest, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(file, prepared)  # which folds BatchNorm
    quantize_static(prepared, file, Batches(), per_channel=True)


def load_onnx(file: Path) -> Run:
    return run_onnx(str(file), "logits")


def onnx_features(file: Path) -> Run:
    import onnx

    network = onnx.load(file)
    head = [node for node in network.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
    network.graph.output.append(onnx.helper.make_empty_tensor_value_info(head.input[0]))
    return run_onnx(network.SerializeToString(), head.input[0])


def run_onnx(network: str | bytes, output: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([output], {"images": images.numpy()})[0])


def onnx_metadata(file: Path) -> dict[str, str]:
    import onnx

    return {each.key: each.value for each in onnx.load(file, load_external_data=False).metadata_props}


def lacks_onnx() -> str:
    return lacks(("onnx", "onnxscript", "onnxruntime"), "export")


def lacks(libraries: Sequence[str], extra: str) -> str:
    missing = [name for name in libraries if find_spec(name) is None]
    return f"{', '.join(missing)}: pip install 'resnet-core[{extra}]'" if missing else ""


def write_openvino(request: Request, file: Path) -> None:
    """Two files: the graph, and beside it the weights."""
    import openvino

    network = openvino.convert_model(capture(request))
    if not request.dynamic_size:
        network.reshape([-1, *request.example.shape[1:]])
    network.inputs[0].get_tensor().set_names({"images"})
    network.outputs[0].get_tensor().set_names({"logits"})
    if request.precision == "int8":
        import nncf

        batches = [batch.numpy() for batch in request.calibration]
        network = nncf.quantize(network, nncf.Dataset(batches), subset_size=len(batches))

    network.set_rt_info("bf16" if request.precision == "bfloat16" else "f32", HINT)
    for name, text in request.metadata.items():
        network.set_rt_info(text, name)
    openvino.save_model(network, file, compress_to_fp16=False)


def load_openvino(file: Path) -> Run:
    import openvino

    return run_openvino(openvino.Core().read_model(file), output=0)


def openvino_features(file: Path) -> Run:
    import openvino

    network = openvino.Core().read_model(file)
    head = [node for node in network.get_ordered_ops() if node.get_type_name() == "MatMul"][-1]
    network.add_outputs([head.input_value(0)])
    return run_openvino(network, output=1)


def run_openvino(network: Any, output: int) -> Run:
    import openvino

    # Without a hint OpenVINO computes float32 files in bfloat16, where the processor is fast at that.
    hint = network.get_rt_info(HINT).value if network.has_rt_info(HINT) else "f32"
    compiled = openvino.compile_model(network, "CPU", {HINT: hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda images: torch.from_numpy(compiled(images.numpy())[output])


def openvino_metadata(file: Path) -> dict[str, str]:
    import openvino

    network = openvino.Core().read_model(file)
    return {KEY: network.get_rt_info(KEY).value} if network.has_rt_info(KEY) else {}


def lacks_openvino() -> str:
    return lacks(("nncf", "openvino"), "openvino")


def write_torch_export(request: Request, file: Path) -> None:
    from torch.export import save

    save(capture(request), file, extra_files=dict(request.metadata))


def load_torch_export(file: Path) -> Run:
    from torch.export import load

    return load(file).module()


def torch_export_features(file: Path) -> Run:
    from torch.export import load

    network = load(file).module()
    head = [node for node in network.graph.nodes if node.target is torch.ops.aten.linear.default][-1]
    interpreter = fx.Interpreter(network, garbage_collect_values=False)

    def run(images: Tensor) -> Tensor:
        interpreter.run(images)
        return interpreter.env[head.args[0]]

    return run


def torch_export_metadata(file: Path) -> dict[str, str]:
    from torch.export import load

    extra = {KEY: ""}
    load(file, extra_files=extra)
    return {name: text for name, text in extra.items() if text}


def write_aoti(request: Request, file: Path) -> None:
    # Without dynamic_threads the file would always use as many threads as the process that exported it.
    options = {"cpp.dynamic_threads": True, "aot_inductor.metadata": dict(request.metadata)}
    if request.precision == "bfloat16":
        request = replace(request, network=InBfloat16(request.network))
    torch._inductor.aoti_compile_and_package(capture(request), package_path=str(file), inductor_configs=options)


class InBfloat16(nn.Module):
    """A network that computes in bfloat16; images and logits are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.bfloat16()).float()


def load_aoti(file: Path) -> Run:
    return torch._inductor.aoti_load_package(str(file))


def aoti_metadata(file: Path) -> dict[str, str]:
    return torch._inductor.aoti_load_package(str(file)).get_metadata()


def lacks_aoti() -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "a C++ compiler: install g++, or name one in the environment variable CXX"
    return ""


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """How a format is written and run, and what this machine lacks for it: a text with the remedy, or an empty one."""

    suffix: str
    precisions: tuple[Precision, ...]
    write: Callable[[Request, Path], int | None]
    """Returns ONNX's opset."""
    load: Callable[[Path], Run]
    lacks: Callable[[], str]
    metadata: Callable[[Path], dict[str, str]]
    features: Callable[[Path], Run] | None = None
    """The file run up to its head's input; None where a file cannot show that."""


EXPORTERS: dict[str, Exporter] = {
    "onnx": Exporter(
        suffix=".onnx",
        precisions=("float32", "int8"),  # onnxruntime has no convolutions in bfloat16 on a CPU
        write=write_onnx,
        load=load_onnx,
        lacks=lacks_onnx,
        metadata=onnx_metadata,
        features=onnx_features,
    ),
    "openvino": Exporter(
        suffix=".xml",
        precisions=("float32", "bfloat16", "int8"),
        write=write_openvino,
        load=load_openvino,
        lacks=lacks_openvino,
        metadata=openvino_metadata,
        features=openvino_features,
    ),
    "torch-export": Exporter(
        suffix=".pt2",
        precisions=("float32",),
        write=write_torch_export,
        load=load_torch_export,
        lacks=lambda: "",
        metadata=torch_export_metadata,
        features=torch_export_features,
    ),
    "aoti": Exporter(
        suffix=".pt2",
        precisions=("float32", "bfloat16"),
        write=write_aoti,
        load=load_aoti,
        lacks=lacks_aoti,
        metadata=aoti_metadata,
    ),
}


def format_of(path: Path) -> str | None:
    """The format of an exported file, by its ending and, where two share one, its content; None for other files."""
    if not path.is_file():
        return None
    if path.suffix != ".pt2":
        return next((name for name, exporter in EXPORTERS.items() if exporter.suffix == path.suffix), None)
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/aotinductor/" in name for name in names):
        return "aoti"
    return "torch-export" if any(name.endswith("/archive_format") for name in names) else None
