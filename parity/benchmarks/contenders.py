"""Who is timed in `parity.benchmarks.speed`: a ResNet in the forms in which people run it, with the same weights."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import resnet_core
from parity.benchmarks.turns import Call
from resnet_core.inference.export import export
from resnet_core.inference.formats import EXPORTERS, quantize_onnx
from resnet_core.inference.optimize import head_of
from resnet_core.train import TrainConfig, Trainer, World
from resnet_core.train.fast import CHOSEN, choose_compiled, choose_form
from resnet_core.train.metrics import classification_sums

LR = 1e-3
RUN_STEPS = 64_000  # of the run that `--train.fast` chooses for, as in the paper's CIFAR protocol
Inputs = Callable[[Tensor], Tensor]


def set_momentum(network: nn.Module, momentum: float) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


@dataclass(frozen=True)
class Case:
    """What all contenders get: a model's name, images and labels on a device, and a folder for files."""

    model: str
    images: Tensor
    labels: Tensor
    threads: int
    folder: Path

    @cached_property
    def network(self) -> nn.Module:
        """Torchvision's network or, where it has none of this name, ours; in evaluation mode on the CPU.

        Its BatchNorm statistics are those of the images, and its head knows the images apart: of random weights every
        image would get almost the same logits, and top-1 would say nothing.
        """
        torch.manual_seed(0)
        build = getattr(torchvision.models, self.model, None) or getattr(resnet_core, self.model)
        network, images = build(), self.images[:64].cpu()
        for name, module in network.named_modules():
            if name.endswith((".bn2", ".bn3")):
                nn.init.constant_(module.weight, 0.25)  # branches add little to a trained network's shortcut, too

        head, features = head_of(network), []
        hook = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        with torch.no_grad():
            set_momentum(network, 1.0)  # one batch is all that the statistics come from
            network.train()(images)
            set_momentum(network, 0.1)
            network.eval()(images)
            apart = features[-1] - features[-1].mean(0)
            count = min(len(apart), head.out_features)
            head.weight[:count] = F.normalize(apart[:count])
        hook.remove()
        return network

    def own(self, build: Callable[[], nn.Module]) -> nn.Module:
        """Another library's network with the same weights, on the device of the images."""
        network = build()
        network.load_state_dict(self.network.state_dict())
        return network.to(self.images.device).eval()

    def batches(self) -> list[Tensor]:
        """Images to calibrate int8 with: those of the case and others like them."""
        generator = torch.Generator().manual_seed(1)
        images = self.images.cpu()
        return [images, *(images + 0.1 * torch.randn(images.shape, generator=generator) for _ in range(3))]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to run a network in a precision, and the libraries that it needs."""

    name: str
    precision: str
    make: Callable[[Case], Callable[..., Any]]
    """For inference a function of images to logits, for training a step that returns its loss."""
    needs: tuple[str, ...] = ()
    device: str = ""
    """The one on which it runs; empty: any."""

    def lacks(self, device: str) -> str:
        """Why it cannot run here; empty if it can."""
        if self.device and self.device != device:
            return "it needs an NVIDIA GPU" if self.device == "cuda" else "it runs on the CPU only"
        missing = [name for name in self.needs if find_spec(name) is None]
        return f"needs {', '.join(missing)}: pip install 'resnet-core[bench]'" if missing else ""


def theirs(case: Case) -> nn.Module:
    return case.own(lambda: copy.deepcopy(case.network))


def ours(case: Case) -> nn.Module:
    return case.own(getattr(resnet_core, case.model))


def of_timm(case: Case) -> nn.Module:
    import timm

    return case.own(lambda: timm.create_model(case.model))


def torch_inference(
    case: Case,
    build: Callable[[Case], nn.Module],
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    compiled: bool = False,
    graph: bool = False,
) -> Inputs:
    """A forward of a network of torch's."""
    network = build(case).to(dtype)
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    network = network.to(memory_format=memory_format)
    if compiled and case.images.device.type == "cpu":
        from torch._inductor import config

        config.freezing = True
    if compiled:
        network.compile(dynamic=False)

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return network(images.to(dtype, memory_format=memory_format))

    return recorded(run, case.images) if graph else run


def recorded(run: Inputs, images: Tensor) -> Inputs:
    """A forward as a CUDA graph."""
    own, outputs = images.clone(), []
    replay = as_graph(lambda: outputs.append(run(own)))

    def forward(images: Tensor) -> Tensor:
        own.copy_(images)
        replay()
        return outputs[-1]

    return forward


def as_graph(step: Call) -> Call:
    """The step, recorded once and replayed: its kernels start without Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a capture must not contain what the first calls allocate
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def optimized(case: Case, dtype: Any) -> Inputs:
    calibration = case.batches() if dtype == "int8" else None
    return resnet_core.optimize_for_inference(ours(case), case.images, dtype, calibration)


def exported(case: Case, precision: Any) -> Inputs:
    """Our OpenVINO file, as `predict` runs it."""
    file, images = case.folder / f"{precision}.xml", case.images
    calibration = case.batches() if precision == "int8" else None
    shape = {"image_size": images.shape[-1], "channels": images.shape[1]}
    export(ours(case), file, format="openvino", precision=precision, calibration=calibration, **shape)
    return EXPORTERS["openvino"].load(file)


def openvino_file(name: str, precision: str) -> Contender:
    make = partial(exported, precision=precision)
    return Contender(name=name, precision=precision, make=make, needs=("nncf", "openvino"), device="cpu")


def by_pt2e(case: Case) -> Inputs:
    """Torch's own way to int8: torchao's PT2E, compiled and frozen."""
    from torch._inductor import config
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    images = case.images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        # Without `strict` a ReLU's second use counts as the same module, which the quantizer refuses.
        program = torch.export.export(resnet_core.separate_relus(theirs(case)), (images,), strict=True)
        prepared = prepare_pt2e(program.module(), quantizer)
        for batch in case.batches():
            prepared(batch)
        network = move_exported_model_to_eval(convert_pt2e(prepared))
    config.freezing = True
    return torch.no_grad()(torch.compile(network))


def onnx_file(case: Case) -> Path:
    """The network as torch's exporter writes it."""
    file = case.folder / "network.onnx"
    if not file.exists():
        images = case.images.cpu()
        torch.onnx.export(case.network, (images,), file, input_names=["images"], dynamo=True, verbose=False)
    return file


def onnxruntime_inference(case: Case, *, int8: bool = False) -> Inputs:
    import onnxruntime

    file = onnx_file(case)
    if int8:
        file = Path(shutil.copy(file, case.folder / "int8.onnx"))
        quantize_onnx(file, case.batches())

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def openvino_inference(case: Case, *, precision: str = "f32", int8: bool = False) -> Inputs:
    import openvino

    network = openvino.convert_model(case.network, example_input=case.images, input=tuple(case.images.shape))
    if int8:
        import nncf

        network = nncf.quantize(network, nncf.Dataset([batch.numpy() for batch in case.batches()]))
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": case.threads}
    compiled = openvino.compile_model(network, "CPU", options)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


BF16 = torch.bfloat16
FASTEST: dict[str, Any] = {"dtype": BF16, "channels_last": True, "compiled": True}

INFERENCE = (
    Contender(name="torchvision, eager", precision="float32", make=partial(torch_inference, build=theirs)),
    Contender(
        name="torchvision, channels_last",
        precision="float32",
        make=partial(torch_inference, build=theirs, channels_last=True),
    ),
    Contender(
        name="torchvision, compiled",
        precision="float32",
        make=partial(torch_inference, build=theirs, channels_last=True, compiled=True),
    ),
    Contender(name="timm, eager", precision="float32", make=partial(torch_inference, build=of_timm), needs=("timm",)),
    Contender(
        name="onnxruntime",
        precision="float32",
        make=onnxruntime_inference,
        needs=("onnx", "onnxscript", "onnxruntime"),
        device="cpu",
    ),
    Contender(name="OpenVINO", precision="float32", make=openvino_inference, needs=("openvino",), device="cpu"),
    Contender(name="ours, eager", precision="float32", make=partial(torch_inference, build=ours)),
    Contender(name="ours, optimized", precision="float32", make=partial(optimized, dtype="float32"), device="cpu"),
    openvino_file("ours, OpenVINO file", "float32"),
    Contender(
        name="torchvision, bf16 channels_last",
        precision="bfloat16",
        make=partial(torch_inference, build=theirs, dtype=BF16, channels_last=True),
    ),
    Contender(
        name="torchvision, bf16 compiled",
        precision="bfloat16",
        make=partial(torch_inference, build=theirs, **FASTEST),
    ),
    Contender(
        name="OpenVINO, bf16",
        precision="bfloat16",
        make=partial(openvino_inference, precision="bf16"),
        needs=("openvino",),
        device="cpu",
    ),
    Contender(
        name="ours, bf16 optimized", precision="bfloat16", make=partial(optimized, dtype="bfloat16"), device="cpu"
    ),
    openvino_file("ours, bf16 OpenVINO file", "bfloat16"),
    Contender(
        name="ours, bf16 compiled CUDA graph",
        precision="bfloat16",
        make=partial(torch_inference, build=ours, graph=True, **FASTEST),
        device="cuda",
    ),
    Contender(
        name="onnxruntime, int8",
        precision="int8",
        make=partial(onnxruntime_inference, int8=True),
        needs=("onnx", "onnxscript", "onnxruntime"),
        device="cpu",
    ),
    Contender(
        name="OpenVINO, int8 of NNCF",
        precision="int8",
        make=partial(openvino_inference, int8=True),
        needs=("openvino", "nncf"),
        device="cpu",
    ),
    Contender(name="torchao PT2E, int8 compiled", precision="int8", make=by_pt2e, needs=("torchao",), device="cpu"),
    Contender(
        name="ours, int8 optimized",
        precision="int8",
        make=partial(optimized, dtype="int8"),
        needs=("torchao",),
        device="cpu",
    ),
    openvino_file("ours, int8 OpenVINO file", "int8"),
)


def torch_step(
    case: Case,
    build: Callable[[Case], nn.Module],
    *,
    bf16: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
    graph: bool = False,
) -> Callable[[], Tensor]:
    """A training step of a loop by hand, on the same batch each time."""
    network, images = build(case).train(), case.images
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if compiled:
        network.compile(dynamic=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9)
    losses: list[Tensor] = []

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(images.device.type, dtype=BF16, enabled=bf16):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), case.labels)
        loss.backward()
        optimizer.step()
        losses[:] = [loss.detach()]
        return losses[0]

    if not graph:
        return step
    replay = as_graph(step)
    return lambda: (replay(), losses[0])[1]


@dataclass(frozen=True)
class Batches:
    """The case's batch at every step."""

    case: Case

    @property
    def global_batch(self) -> int:
        return len(self.case.images)

    def __len__(self) -> int:
        return 1_000_000

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.case.images, self.case.labels


def trainer_step(case: Case, **settings: Any) -> Callable[[], Tensor]:
    """A step of this package's trainer."""
    network = ours(case)
    trainer = Trainer(
        TrainConfig(epochs=1, **settings),
        network,
        torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9),
        world=World(device=case.images.device),
        loss_fn=F.cross_entropy,
        lr_fn=lambda step: LR,
        train_loader=Batches(case),
        eval_loader=(),
        score_fn=classification_sums,
    )
    steps = trainer.steps()
    return lambda: torch.tensor(next(steps).loss)


def fast_step(case: Case) -> Callable[[], Tensor]:
    """The same with what `--train.fast` turns on for a run of that many such steps."""

    def step_of(form: TrainConfig) -> Callable[[], Tensor]:
        return trainer_step(case, **{name: getattr(form, name) for name in CHOSEN})

    say = partial(print, file=sys.stderr, flush=True)
    form = choose_form(TrainConfig(), step_of, cuda_graphs=False, say=say)
    return step_of(choose_compiled(form, step_of, num_steps=RUN_STEPS, num_shapes=3, say=say))


ALL_OF_THESE: dict[str, Any] = {"precision": "bf16", "channels_last": True, "compile": True}

TRAINING = (
    Contender(name="torchvision, eager", precision="float32", make=partial(torch_step, build=theirs)),
    Contender(
        name="torchvision, channels_last",
        precision="float32",
        make=partial(torch_step, build=theirs, channels_last=True),
    ),
    Contender(
        name="torchvision, bf16 channels_last",
        precision="bfloat16",
        make=partial(torch_step, build=theirs, bf16=True, channels_last=True),
    ),
    Contender(
        name="torchvision, bf16 channels_last compiled",
        precision="bfloat16",
        make=partial(torch_step, build=theirs, bf16=True, channels_last=True, compiled=True),
    ),
    Contender(
        name="torchvision, bf16 channels_last compiled CUDA graph",
        precision="bfloat16",
        make=partial(torch_step, build=theirs, bf16=True, channels_last=True, compiled=True, graph=True),
        device="cuda",
    ),
    Contender(name="ours, eager", precision="float32", make=trainer_step),
    Contender(name="ours, bf16", precision="bfloat16", make=partial(trainer_step, precision="bf16")),
    Contender(name="ours, channels_last", precision="float32", make=partial(trainer_step, channels_last=True)),
    Contender(name="ours, compiled", precision="float32", make=partial(trainer_step, compile=True)),
    Contender(
        name="ours, CUDA graph", precision="float32", make=partial(trainer_step, cuda_graphs=True), device="cuda"
    ),
    Contender(
        name="ours, bf16 channels_last",
        precision="bfloat16",
        make=partial(trainer_step, precision="bf16", channels_last=True),
    ),
    Contender(
        name="ours, bf16 channels_last compiled", precision="bfloat16", make=partial(trainer_step, **ALL_OF_THESE)
    ),
    Contender(name="ours, fast", precision="bfloat16", make=fast_step, device="cpu"),
    Contender(
        name="ours, all of these",
        precision="bfloat16",
        make=partial(trainer_step, cuda_graphs=True, **ALL_OF_THESE),
        device="cuda",
    ),
)


def chosen(
    contenders: Sequence[Contender], precisions: Sequence[str], against: Sequence[str], without: Sequence[str]
) -> list[Contender]:
    """The reference, which comes first, and the others in these precisions whose name has one of the words `against`
    and none of the words `without`."""
    first, *others = contenders
    return [
        first,
        *(
            each
            for each in others
            if (not precisions or each.precision in precisions)
            and (not against or any(word in each.name for word in against))
            and not any(word in each.name for word in without)
        ),
    ]
