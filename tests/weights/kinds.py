"""The kinds of weights files that people have: each is written, read and compared with the network that it is of.

`python -m tests.weights.kinds` prints what happens with each.
"""

import argparse
import collections
import copy
import datetime
import importlib
import importlib.util
import io
import json
import os
import pathlib
import pickle
import pickletools
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from unittest import mock

import numpy
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

import resnet_core
from resnet_core.builders import get_model
from resnet_core.weights import WeightsError, inspect_weights, load_model, load_weights
from resnet_core.weights.convert import convert
from resnet_core.weights.names import EPSILON, their_names
from tests.weights.networks import akamaster, akamaster_checkpoint, kuangliu, kuangliu_checkpoint

# The networks, with weights and BatchNorm statistics of their own.


@cache
def network(name="cifar_resnet20", **config):
    torch.manual_seed(0)
    model = get_model(name, **{"num_classes": 5} | config)
    model(torch.randn(2, config.get("in_channels", 3), 32, 32))
    return model.eval()


@cache
def foreign(make):
    torch.manual_seed(0)
    return make().eval()


LARGE = {"name": "resnet18"}
V1 = {"name": "resnet50", "stride_in_1x1": True}


def body(state):
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def renamed(state, scheme):
    return {theirs: state[ours] for ours, theirs in their_names(scheme, state).items()}


def shifted(state):
    """Other weights under the same names."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def extra(*shapes):
    """Tensors beside the body, by name."""
    return {name: torch.ones(*shape) for name, *shape in shapes}


# How a file is written.


class Anything:
    """Anybody's class."""

    def __init__(self):
        self.lr = 0.1


def pth(make, name="file.pth", of=None, **options):
    """torch.save of what is made of the network's state dict."""

    def write(folder):
        torch.save(make(network(**of or {}).state_dict()), folder / name, **options)
        return folder / name

    return write


def bytes_of(change, **options):
    """A file whose bytes are those of torch.save's, changed."""

    def write(folder):
        torch.save(network().state_dict(), folder / "whole.pth", **options)
        (folder / "file.pth").write_bytes(change((folder / "whole.pth").read_bytes()))
        return folder / "file.pth"

    return write


def of_python2(data):
    """A legacy file whose texts are Python 2's, of at most 255 bytes."""
    stream, written, start = io.BytesIO(data), b"", 0
    for _ in range(5):
        operations = [(position, opcode.name) for opcode, _, position in pickletools.genops(stream)]
        for (position, name), end in zip(
            operations, [each for each, _ in operations[1:]] + [stream.tell()], strict=True
        ):
            chunk = data[position:end]
            written += b"U" + chunk[1:2] + chunk[5:] if name == "BINUNICODE" else chunk
            start = end
    return written + data[start:]


def on_cuda(folder):
    with mock.patch("torch.serialization.location_tag", return_value="cuda:0"):
        return pth(lambda s: s)(folder)


def in_one_buffer(state):
    flat = torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])
    views, start = {}, 0
    for name, value in state.items():
        if value.is_floating_point():
            views[name] = nn.Parameter(flat[start : start + value.numel()].view(value.shape))
            start += value.numel()
        else:
            views[name] = value
    views["conv1.weight"] = state["conv1.weight"].contiguous(memory_format=torch.channels_last)
    return views


def beside(state):
    """A checkpoint with what torch's own optimizers and schedules save."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    schedules = lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 9)], [2]
    )
    steps = lr_scheduler.MultiStepLR(optimizer, [30, 60])
    return {
        "model": state, "optimizer": optimizer.state_dict(), "lr_scheduler": steps.state_dict(),
        "warmup": schedules.state_dict(), "rng": torch.get_rng_state(), "class_names": ["a", "b"], "epoch": 9,
    }  # fmt: skip


def folder_of(state, description, **files):
    """A folder with weights and their description."""

    def write(folder):
        save_file({name: value.contiguous() for name, value in state().items()}, folder / "model.safetensors")
        for name, values in {"config": description, **files}.items():
            (folder / f"{name}.json").write_text(json.dumps(values))
        return folder

    return write


TIMM = {
    "architecture": "resnet18", "num_classes": 5, "label_names": list("abcde"),
    "pretrained_cfg": {"input_size": [3, 288, 288], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0},
}  # fmt: skip
TRANSFORMERS = {
    "model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512],
    "id2label": {str(number): name for number, name in enumerate("abcde")},
}  # fmt: skip


def by_convert(folder):
    return convert(folder_of(lambda: network(**LARGE).state_dict(), TIMM)(folder), folder / "ours.safetensors").path


def sharded(folder):
    state = network().state_dict()
    places = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: state[name] for name, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def distributed(folder):
    dcp.save({"model": dict(network().state_dict())}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


def lightning_logs(folder):
    place = folder / "lightning_logs" / "version_0"
    (place / "checkpoints").mkdir(parents=True)
    (place / "hparams.yaml").write_text("lr: 0.1\n")
    content = {"state_dict": prefixed(network().state_dict(), "model."), "epoch": 0}
    torch.save(content, place / "checkpoints" / "epoch=0-step=9.ckpt")
    (place / "checkpoints" / "last.ckpt").symlink_to("epoch=0-step=9.ckpt")
    return folder


def deepspeed(folder):
    """As it saves two steps of training with ZeRO of stage 1 or 2."""
    for step, state in (("global_step1", shifted(network().state_dict())), ("global_step2", network().state_dict())):
        (folder / step).mkdir()
        torch.save({"module": state, "ds_version": "0.15"}, folder / step / "mp_rank_00_model_states.pt")
        torch.save({"ds_version": "0.15"}, folder / step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text("global_step2")
    return folder


def scripted(folder):
    torch.jit.script(network()).save(folder / "file.pt")
    return folder / "file.pt"


def pruned():
    model = copy.deepcopy(network())
    for module in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        prune.l1_unstructured(module, "weight", amount=0.5)
    return model


def without_bias():
    model = copy.deepcopy(network())
    nn.init.zeros_(model.fc.bias)
    return model


def detectron2(scheme):
    """Arrays, as detectron2's files for its detectors have them: a body."""

    def write(folder):
        state = {name: value for name, value in body(network(**V1).state_dict()).items() if "num_batches" not in name}
        state = of_caffe2(state) if scheme == "caffe2" else renamed(state, scheme)
        content = {"model": {name: value.numpy() for name, value in state.items()}, "__author__": "somebody"}
        (folder / "R-50.pkl").write_bytes(pickle.dumps(content, 2))
        return folder / "R-50.pkl"

    return write


def of_caffe2(state):
    """The BatchNorms of the blocks with their statistics, and that of the stem folded into a scale and a shift."""
    endings = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
    blobs = {}
    for ours, theirs in their_names("caffe2", state).items():
        module, _, variable = theirs.rpartition(".")
        blobs[f"{module}_{endings[variable] if module.endswith('_bn') else 'w'}"] = state[ours]
    scale, shift, mean, variance = (blobs.pop(f"res_conv1_bn_{each}") for each in endings.values())
    blobs["res_conv1_bn_s"] = scale / (variance + EPSILON).sqrt()
    blobs["res_conv1_bn_b"] = shift
    blobs["conv1_b"] = -mean
    return blobs


def keras(name="ResNet50", **options):
    def write(folder):
        os.environ.setdefault("KERAS_BACKEND", "torch")
        import keras

        model = getattr(keras.applications, name)(weights=None, input_shape=(64, 64, 3), **options)
        model.save_weights(folder / "model.weights.h5")
        return folder / "model.weights.h5"

    return write


def text(content, name="file.pth"):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


# How a refusal's remedy is followed: the message and the folder -> the file that it leads to.


def fetch_again(message, folder):
    assert any(words in message for words in ("git lfs pull", "download it again", "fetch it again")), message
    return pth(lambda s: s, "again.pth")(folder)


def take_the_float32_weights(message, folder):
    assert "take the float32 weights that it was made from" in message, message
    return pth(lambda s: s, "again.pth")(folder)


def save_the_state_dict(message, folder):
    assert "save model.state_dict()" in message, message
    return pth(lambda s: s, "again.pth")(folder)


def give_the_checkpoint(message, folder):
    assert "give the checkpoint from which it was exported" in message, message
    return pth(lambda s: s, "again.pth")(folder)


def run_the_lines(message, folder):
    names = {"resnet_core": resnet_core}
    exec(message.partition("these lines load them: ")[2], names)
    return names["network"]


def load_with_timm(message, folder):
    """timm's own network, which is not ours: how far its weights are from the file's."""
    names = {"timm": importlib.import_module("timm")}
    theirs = eval(message.partition("timm loads it: ")[2], names).state_dict()
    state = network(**LARGE).state_dict()
    return max((theirs[name].double() - value.double()).abs().max().item() for name, value in state.items())


def convert_it(message, folder):
    """A Keras file, which `convert` reads and compares with Keras' own network."""
    assert f"resnet-core convert {folder}/model.weights.h5 NAME.safetensors" in message, message
    return convert(folder / "model.weights.h5", folder / "NAME.safetensors").largest_difference


@dataclass(frozen=True)
class Kind:
    name: str
    write: Callable
    """Folder -> the file in it."""
    of: dict | Callable = field(default_factory=dict)
    """The network, as arguments of `network`, or a function that makes it."""
    options: dict = field(default_factory=dict)
    """Arguments of `load_model` and `load_weights`."""
    body: bool = False
    """Whether the file has no classifier."""
    said: str = ""
    """What has to be in the warning, or in what `inspect` prints."""
    remedy: Callable | None = None
    """Follows the message of a refusal."""
    needs: str = ""
    """The library without which the kind cannot be tried."""
    bound: float = 0.0
    """Of the largest difference."""


HEAD_OF_MMPRETRAIN = {"fc.weight": "head.fc.weight", "fc.bias": "head.fc.bias"}
PROJECTION = extra(("fc.0.weight", 64, 64), ("fc.2.weight", 9, 64))
KINDS = [
    Kind("plain state_dict", pth(lambda s: s)),
    Kind("DataParallel", pth(lambda s: prefixed(s, "module."))),
    Kind("torch.compile", pth(lambda s: prefixed(s, "_orig_mod."))),
    Kind("compiled in DataParallel", pth(lambda s: prefixed(s, "module._orig_mod."))),
    Kind("pytorch/examples model_best.pth.tar", pth(
        lambda s: {"arch": "x", "epoch": 3, "best_acc1": torch.tensor(7.0), "state_dict": prefixed(s, "module.")},
        "model_best.pth.tar")),
    Kind("torchvision's references, args = Namespace", pth(lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)})),
    Kind("MultiStepLR's Counter, AdamW, schedules, RNG, class names", pth(beside)),
    Kind("references: model and model_ema", pth(
        lambda s: {"model": shifted(s), "model_ema": AveragedModel(network()).state_dict()}),
        said="averaged ones are taken.* add --key model"),
    Kind("timm's model_best.pth.tar with Namespace", pth(
        lambda s: {"epoch": 3, "arch": "x", "state_dict": s, "args": argparse.Namespace(), "version": 2, "metric": 7.0},
        "model_best.pth.tar")),
    Kind("timm: state_dict and state_dict_ema", pth(lambda s: {"state_dict": shifted(s), "state_dict_ema": s}),
         said="averaged ones are taken.* add --key state_dict"),
    Kind("an average without names", pth(
        lambda s: {"model": s, "ema": {"shadow_params": [*map(torch.zeros_like, network().parameters())]}}),
        said="averaged weights without names.*ema.shadow_params"),
    Kind("the same network twice", pth(
        lambda s: {"last": s, "best": {f"module.{name}": value * 1 for name, value in s.items()}})),
    Kind("mmengine's EMAHook, which saves the average as state_dict", pth(lambda s: {
        "meta": {}, "message_hub": {}, "state_dict": prefixed(s, "backbone."),
        "ema_state_dict": prefixed(shifted(s), "module.backbone.")}),
        said="averaged ones are taken.* add --key ema_state_dict"),
    Kind("Lightning's WeightAveraging, which does so as well", pth(lambda s: {
        "state_dict": prefixed(s, "model."), "current_model_state": prefixed(shifted(s), "model."),
        "averaging_state": {"n_averaged": torch.tensor(3)}}),
        said="averaged ones are taken.* add --key current_model_state"),
    Kind("AveragedModel", pth(lambda s: AveragedModel(network()).state_dict())),
    Kind("model_state_dict of PyTorch's tutorial", pth(
        lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": {"state": {}}, "loss": 0.1})),
    *[Kind(f"under the key {key}", pth(lambda s, key=key: {key: s, "epoch": 3}))
      for key in ("weights", "net", "network", "model_state", "params", "encoder", "ema")],
    Kind("two levels", pth(lambda s: {"checkpoint": {"params": s}})),
    Kind("best_acc as numpy scalar", pth(lambda s: {"model": s, "best_acc": numpy.float64(0.9)})),
    Kind("numpy RNG state, defaultdict, Path, datetime", pth(lambda s: {
        "rng": numpy.random.get_state(), "log": collections.defaultdict(list, a=[1]), "model": s,
        "out": pathlib.PurePosixPath("/a"), "when": datetime.datetime(2020, 1, 1)})),
    Kind("set, dtype, device, Size", pth(lambda s: {
        "model": s, "classes": {"a"}, "dtype": torch.float32, "device": torch.device("cpu"), "size": torch.Size([2])})),
    Kind("whole module pickled", pth(lambda s: network()), said=r"resnet_core\.models\.cifar\.CifarResNet"),
    Kind("legacy format", pth(lambda s: s, _use_new_zipfile_serialization=False)),
    Kind("Python 2's text in a legacy pickle", bytes_of(of_python2, _use_new_zipfile_serialization=False)),
    Kind("without num_batches_tracked", pth(lambda s: {n: v for n, v in s.items() if "num_batches" not in n})),
    Kind("float16", pth(lambda s: {n: v.half() if v.is_floating_point() else v for n, v in s.items()}),
         of=lambda: copy.deepcopy(network()).half().float()),
    Kind("all of it bfloat16, with the counts of batches", pth(lambda s: {n: v.bfloat16() for n, v in s.items()}),
         of=lambda: copy.deepcopy(network()).bfloat16().float()),
    Kind("saved on cuda:0", on_cuda),
    Kind("channels_last, views of one buffer, Parameters", pth(in_one_buffer)),
    Kind("Lightning .ckpt", pth(lambda s: {
        "state_dict": prefixed(s, "model."), "epoch": 3, "hyper_parameters": Anything(), "callbacks": {}}, "x.ckpt")),
    Kind("Lightning's root folder", lightning_logs, said="weights file .*epoch=0-step=9.ckpt is taken"),
    Kind("own wrapper with a criterion", pth(
        lambda s: {"state_dict": prefixed(s, "net.") | extra(("criterion.weight", 5)), "hyper_parameters": {}})),
    Kind("timm's folder", folder_of(lambda: network(**LARGE).state_dict(), TIMM), LARGE),
    Kind("timm's folder by convert", by_convert, LARGE),
    Kind("timm's resnetblur18", folder_of(
        lambda: network(**LARGE).state_dict(), TIMM | {"architecture": "resnetblur18"}),
        remedy=load_with_timm, needs="timm"),
    Kind("timm's checkpoint of a resnetblur18", pth(
        lambda s: {"arch": "resnetblur18", "state_dict": s, "args": argparse.Namespace(model="resnetblur18")},
        "model_best.pth.tar", of=LARGE), remedy=load_with_timm, needs="timm"),
    Kind("resnetblur18 without its folder", pth(lambda s: s, of=LARGE), LARGE, said="resnetaa50 and resnetblur50"),
    Kind("transformers' folder", folder_of(
        lambda: renamed(network(**LARGE).state_dict(), "transformers"), TRANSFORMERS), LARGE),
    Kind("transformers' ResNetModel", folder_of(
        lambda: renamed(body(network(**LARGE).state_dict()), "transformers"), TRANSFORMERS), LARGE, body=True),
    Kind("MoCo v1", pth(lambda s: {"state_dict": prefixed(
        body(s) | extra(("fc.weight", 9, 64), ("fc.bias", 9)), "module.encoder_q.")}), body=True),
    Kind("MoCo v2", pth(lambda s: {"state_dict": prefixed(body(s) | PROJECTION, "module.encoder_q.")
         | prefixed(shifted(body(s)) | PROJECTION, "module.encoder_k.")}, "moco.pth.tar"),
         options={"prefix": "module.encoder_q."}, body=True, said="encoder_k"),
    Kind("SimSiam", pth(lambda s: {"state_dict": prefixed(body(s) | PROJECTION, "module.encoder.")
         | extra(("module.predictor.0.weight", 9, 9))}), body=True),
    Kind("SwAV", pth(lambda s: prefixed(
        body(s) | extra(("projection_head.0.weight", 8, 64), ("prototypes.weight", 9, 8)), "module.")), body=True),
    Kind("a projection of another width", pth(lambda s: body(s) | extra(("fc.weight", 9, 32))), body=True),
    Kind("Barlow Twins, VICReg, DINO without a head", pth(body), body=True),
    Kind("DINO: student and teacher", pth(lambda s: {
        key: prefixed(body(values), f"{module}backbone.")
        | extra((f"{module}head.mlp.0.weight", 9, 64), (f"{module}head.last_layer.weight_v", 9, 9))
        for key, module, values in (("student", "module.", shifted(s)), ("teacher", "", s))}),
        options={"key": "teacher"}, body=True, said="student"),
    Kind("mmpretrain", pth(lambda s: {
        "meta": {}, "state_dict": prefixed(body(s), "backbone.") | {t: s[o] for o, t in HEAD_OF_MMPRETRAIN.items()}})),
    Kind("detectron2", detectron2("detectron2"), V1, {"stride_in_1x1": True}, body=True, said="networks are v1"),
    Kind("Caffe2's names", detectron2("caffe2"), V1, {"stride_in_1x1": True}, body=True,
         said="networks are v1", bound=1e-5),
    Kind("TorchScript archive", scripted),
    Kind("fc = Sequential(Dropout, Linear)", pth(
        lambda s: body(s) | {"fc.1.weight": s["fc.weight"], "fc.1.bias": s["fc.bias"]})),
    Kind("a head under a name of its own", pth(lambda s: prefixed(body(s), "backbone.") | extra(("mean", 3))
         | {"my_classes.weight": s["fc.weight"], "my_classes.bias": s["fc.bias"]}),
         said="5 classes: my_classes, the only layer outside the body, is taken for it"),
    Kind("1 input channel", pth(lambda s: s, of={"in_channels": 1}), {"in_channels": 1}),
    Kind("kuangliu's ckpt.pth", lambda folder: pth(lambda _: kuangliu_checkpoint(foreign(kuangliu)))(folder),
         of=lambda: foreign(kuangliu)),
    Kind("resnet18 with CIFAR's stem", pth(lambda s: s, of=LARGE | {"small_images": True}),
         LARGE | {"small_images": True}),
    Kind("segmentation_models_pytorch", pth(
        lambda s: prefixed(body(s), "encoder.") | extra(("decoder.conv.weight", 3, 3, 1, 1))), body=True),
    Kind("torchvision's detector", pth(
        lambda s: prefixed(body(s), "backbone.body.") | extra(("rpn.head.conv.weight", 3, 3, 1, 1))), body=True),
    Kind("Sequential(*children())", pth(lambda s: renamed(s, "sequential"), of=LARGE), LARGE),
    Kind("fastai's learn.save", pth(
        lambda s: prefixed(renamed(body(s), "sequential"), "0.") | extra(("1.8.weight", 5, 9))), body=True),
    Kind("DeepSpeed", pth(lambda s: {"module": s, "ds_version": "0.15"}, "mp_rank_00_model_states.pt")),
    Kind("DeepSpeed's root folder", deepspeed, said="weights file global_step2/mp_rank.* is taken"),
    Kind("torch distributed checkpoint", distributed),
    Kind("accelerate's save_model folder", folder_of(lambda: network().state_dict(), {})),
    Kind("sharded folder with an index", sharded),
    Kind("int8", pth(lambda s: s | {"conv1.weight": torch.quantize_per_tensor(s["conv1.weight"], 0.1, 0, torch.qint8)}),
         remedy=take_the_float32_weights),
    Kind("quantization-aware training", pth(lambda s: s | extra(("conv1.activation_post_process.scale", 1))),
         remedy=take_the_float32_weights),
    Kind("pruned", lambda folder: pth(lambda _: pruned().state_dict())(folder), of=pruned),
    Kind("Git LFS pointer", text(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"), remedy=fetch_again),
    Kind("web page", text(b"<!DOCTYPE html><html><title>Virus scan warning</title></html>"), remedy=fetch_again),
    Kind("download cut in half", bytes_of(lambda data: data[: len(data) // 2]), remedy=fetch_again),
    Kind("safetensors named .pth", lambda folder: folder_of(lambda: network().state_dict(), {})(folder).joinpath(
        "model.safetensors").rename(folder / "file.pth")),
    Kind("pickle named .safetensors", pth(lambda s: s, "file.safetensors")),
    Kind("named_parameters() only", pth(lambda s: {n: v for n, v in s.items() if "running" not in n and v.dim()}),
         remedy=save_the_state_dict),
    Kind("thop's counters", pth(lambda s: s | extra(("total_ops", 1), ("layer1.0.conv1.total_params", 1)))),
    Kind("pickle_protocol=4", pth(lambda s: s, pickle_protocol=4)),
    Kind("v1 under torchvision's names", pth(lambda s: s, of=V1), V1, {"stride_in_1x1": True},
         said="first 1x1 .v1.: v1.5 is assumed"),
    Kind("v1 as a whole module, which shows it", lambda folder: pth(lambda _: network(**V1))(folder), V1,
         said="stride_in_1x1=True"),
    Kind("1000 classes that may not be ImageNet's", pth(lambda s: s, of=LARGE | {"num_classes": 1000}),
         LARGE | {"num_classes": 1000}, said="what the classes are called"),
    Kind("head without bias", pth(lambda s: {n: v for n, v in s.items() if n != "fc.bias"}), of=without_bias,
         said="linear without bias, 5 classes"),
    Kind("Keras' ResNet50", keras(classes=5), remedy=convert_it, needs="keras", bound=1e-4),
    Kind("Keras without its top", keras(include_top=False), remedy=convert_it, needs="keras", bound=1e-4),
    Kind("ONNX given to predict", text(b"\x08\x09\x12\x07pytorch\x1a\x052.0.0"), remedy=give_the_checkpoint),
    Kind("akamaster's .th", lambda folder: pth(
        lambda _: akamaster_checkpoint(foreign(akamaster)), "resnet20-12fca82f.th")(folder),
        of=lambda: foreign(akamaster)),
    Kind("kuangliu's trainer with a CIFAR network", lambda folder: pth(
        lambda _: kuangliu_checkpoint(foreign(akamaster)), "ckpt.pth")(folder), of=lambda: foreign(akamaster)),
    Kind("names of one's own", pth(lambda s: {f"part_{number}": value for number, value in enumerate(s.values())}),
         remedy=run_the_lines),
]  # fmt: skip


def try_kind(kind, folder):
    """What happens with a kind, in words, and the largest difference from its network; None where there is none."""
    expected = kind.of() if callable(kind.of) else network(**kind.of)
    with warnings.catch_warnings(action="ignore"):
        path = kind.write(folder)

    words = ", ".join(["loaded", *(f"{name}={value!r}" for name, value in kind.options.items())])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            ours = loaded(path, kind, expected)
        except WeightsError as error:
            if kind.remedy is None:
                raise
            ours, words = kind.remedy(str(error), folder), f"refused; then {kind.remedy.__name__.replace('_', ' ')}"
            if isinstance(ours, pathlib.Path):
                ours = loaded(ours, kind, expected)

    assert kind.said or kind.remedy or not warned, warned
    if kind.said:
        with warnings.catch_warnings(action="ignore"):
            inspected = str(inspect_weights(path))
        shown = [*(str(each.message) for each in warned), *inspected.splitlines()]
        assert any(re.search(kind.said, line) for line in shown), shown
        words += "; said"
    return words, difference(ours.eval(), expected) if isinstance(ours, nn.Module) else ours


def loaded(path, kind, expected):
    """Our network with the weights of a file; of a body with the expected network's head."""
    try:
        model, _ = load_model(path, **kind.options)
    except WeightsError as error:
        if not kind.body or "has no classifier" not in str(error):
            raise
    else:
        assert not kind.body, "its projection was taken for a classifier"
        return model
    options = dict(kind.options)
    v1 = {"stride_in_1x1": True} if options.pop("stride_in_1x1", False) else {}
    ours = get_model(kind.of.get("name", "cifar_resnet20"), num_classes=5, **v1)
    load_weights(ours, path, new_head=True, **options)
    ours.fc = expected.fc
    return ours


@torch.no_grad()
def difference(ours, expected):
    images = torch.randn(2, ours.conv1.in_channels, 32, 32, generator=torch.Generator().manual_seed(1))
    return (ours(images) - expected(images)).abs().max().item()


def main():
    for kind in KINDS:
        if kind.needs and importlib.util.find_spec(kind.needs) is None:
            print(f"{kind.name:<60}needs {kind.needs}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            words, apart = try_kind(kind, pathlib.Path(folder))
        print(f"{kind.name:<60}{words:<50}{apart:.1g}", flush=True)


if __name__ == "__main__":
    main()
