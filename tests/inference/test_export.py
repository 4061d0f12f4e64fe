"""Exported files compute what their model computes, loaded as their users load them; others are not written."""

import dataclasses
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.cpp_builder import cpp_compiler_search

import resnet_core
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.precision import same_bits
from resnet_core.inference.export import EXPORTERS, ExportError, export
from resnet_core.models.backbone import Backbone
from resnet_core.models.cifar import CifarResNet
from resnet_core.models.resnet import BasicBlock
from resnet_core.weights import WeightsInfo

SIZE = 32


def tiny(**config):
    torch.manual_seed(0)
    return CifarResNet(1, **config)


def images(batch, channels=3, size=SIZE):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(100 + batch))


def assert_computes(run, model, channels=3, size=SIZE):
    """`run` is within 1e-5 of a float64 run, relative to its largest logit, for the batch of the export and others."""
    oracle = model.eval().double()
    for batch in (1, 2, 5):
        pictures = images(batch, channels, size)
        with torch.no_grad():
            expected = oracle(pictures.double())
        torch.testing.assert_close(run(pictures).double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def replaced(monkeypatch, name="torch-export", **functions):
    monkeypatch.setitem(EXPORTERS, name, dataclasses.replace(EXPORTERS[name], **functions))


@pytest.mark.parametrize(
    "build",
    [resnet_core.resnet18, resnet_core.resnet50, partial(Backbone, BasicBlock, (1, 1, 1, 1), small_images=True)],
    ids=["resnet18", "resnet50", "for small images"],
)
def test_a_file_of_torch_export_computes_what_the_model_computes(build, tmp_path, capfd):
    model = build()
    result = export(model, tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    run = torch.export.load(tmp_path / "model.pt2").module()
    assert same_bits(run(images(5)), model.eval()(images(5)))
    assert_computes(run, model)
    assert result.largest_difference == 0
    assert result.bytes == (tmp_path / "model.pt2").stat().st_size
    assert result.path == tmp_path / "model.pt2"
    assert capfd.readouterr().out == ""


INFO = WeightsInfo(
    model="cifar_resnet20",
    transform=ImageTransform(resize_size=40, crop_size=32, interpolation="bicubic"),
    class_names=("zero", "ö"),
    origin="a test",
)


@pytest.fixture(scope="module")
def grey_aoti(tmp_path_factory):
    """A compiled CIFAR network of one channel: its model, its file, and what `export` said."""
    model = tiny(in_channels=1)
    file = tmp_path_factory.mktemp("aoti") / "model.pt2"
    return model, file, export(model, file, format="aoti", image_size=28, channels=1, info=INFO)


def test_a_compiled_file_computes_what_the_model_computes_and_carries_its_info(grey_aoti):
    model, file, result = grey_aoti
    run = torch._inductor.aoti_load_package(str(file))
    assert_computes(run, model, 1, 28)
    assert WeightsInfo.from_metadata(run.get_metadata()) == INFO
    assert 0 < result.largest_difference < 1e-5 * result.largest_logit


def test_a_compiled_file_uses_the_threads_of_the_machine_that_runs_it(grey_aoti):
    with zipfile.ZipFile(grey_aoti[1]) as package:
        source = b"".join(package.read(name) for name in package.namelist() if name.endswith(".cpp"))
    assert b"omp parallel" in source
    assert b"omp parallel num_threads" not in source


@pytest.mark.interop
@pytest.mark.parametrize(("name", "dynamic_size"), [("resnet18", False), ("resnet18", True), ("resnet50", False)])
def test_a_compiled_resnet_computes_what_the_model_computes(name, dynamic_size, tmp_path, capfd):
    model = resnet_core.get_model(name)
    export(model, tmp_path / "model.pt2", format="aoti", image_size=64, dynamic_size=dynamic_size)
    run = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    for size in (64, 33, 97) if dynamic_size else (64,):
        assert_computes(run, model, size=size)
    assert capfd.readouterr().out == ""


@pytest.mark.interop
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnets_file_of_any_size_takes_images_from_33_pixels(name, tmp_path):
    model = resnet_core.get_model(name).eval()
    export(model, tmp_path / "model.pt2", format="torch-export", image_size=33, dynamic_size=True)
    run = torch.export.load(tmp_path / "model.pt2").module()
    assert same_bits(run(images(3, size=33)), model(images(3, size=33)))
    with pytest.raises(AssertionError, match="Guard failed"):
        run(images(3, size=32))


def test_the_model_stays_as_it_was(tmp_path):
    model = tiny().bfloat16().train()
    model.layer1.eval()
    model.fc.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    export(model, tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [name for name, value in model.named_parameters() if not value.requires_grad] == ["fc.weight"]


def test_a_file_of_any_size_computes_what_the_model_computes_and_carries_its_info(tmp_path):
    model, file = tiny().eval(), tmp_path / "model.pt2"
    result = export(model, file, format="torch-export", image_size=SIZE, dynamic_size=True, info=INFO)
    extra = {"resnet_core": ""}
    run = torch.export.load(file, extra_files=extra).module()
    for height, width in ((5, 64), (97, 40), (64, 64)):
        pictures = torch.randn(3, 3, height, width)
        assert same_bits(run(pictures), model(pictures))
    assert result.largest_difference == 0
    assert WeightsInfo.from_metadata(extra) == INFO


def test_a_size_that_cannot_be_dynamic_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ExportError, match=r"failed on this model \(Guard failed.*take a larger image_size"):
        export(tiny(), tmp_path / "model.pt2", format="torch-export", image_size=4, dynamic_size=True)


@pytest.mark.parametrize("spoiled_size", [(2 * SIZE, SIZE + 40), (SIZE + 17, 2 * SIZE)])
def test_a_file_that_disagrees_at_one_of_the_two_other_sizes_is_not_left(spoiled_size, tmp_path, monkeypatch):
    model = tiny().eval()

    def run(batch):
        return model(batch) + 0.1 * (batch.shape[2:] == spoiled_size)

    replaced(monkeypatch, write=lambda _, file: file.touch(), load=lambda _: run)
    with pytest.raises(ExportError, match="computes something else"):
        export(model, tmp_path / "model.pt2", format="torch-export", image_size=SIZE, dynamic_size=True)


def test_a_file_takes_only_images_of_its_size(tmp_path):
    export(tiny(), tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    with pytest.raises(AssertionError, match="size"):
        torch.export.load(tmp_path / "model.pt2").module()(images(2, size=48))


def test_a_file_names_no_folder_of_the_machine_that_wrote_it(tmp_path):
    export(tiny(), tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    content = (tmp_path / "model.pt2").read_bytes()
    for module in (resnet_core, torch):
        assert str(Path(module.__file__).parent).encode() not in content


SPOILED = {
    "a hundred thousandth off": lambda logits: logits + 1e-5 * logits.abs().max(),
    "not a number": lambda logits: logits / 0 * 0,
    "bfloat16": lambda logits: logits.bfloat16().float(),
    "rows in another order": lambda logits: logits.flip(0),
    "too few rows": lambda logits: logits[:1],
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_file_that_disagrees_is_not_left(spoil, tmp_path, monkeypatch):
    model = tiny().eval()
    replaced(monkeypatch, write=lambda _, file: file.touch(), load=lambda _: lambda batch: spoil(model(batch)))
    with pytest.raises(ExportError, match=r"model\.pt2 was not written"):
        export(model, tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_model_is_not_left(tmp_path, monkeypatch):
    other = tiny().eval()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # Keras' default
    program = torch.export.export(other, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    replaced(monkeypatch, write=lambda _, file: torch.export.save(program, file))
    with pytest.raises(ExportError, match="computes something else"):
        export(tiny(), tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(program, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    replaced(monkeypatch, write=interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tiny(), tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """What no exporter can follow: the images decide which code runs."""

    def forward(self, batch):
        return batch.flatten(1) if batch.sum() > 0 else -batch.flatten(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), r"model\.pt2 was not written: torch-export failed on this model \(.*data-dependent"),
        (tiny(in_channels=1), r"does not take images of 3 x 32 x 32 \(.*channels.*\); pass its own channels"),
    ],
    ids=["branching", "grey"],
)
def test_a_model_that_cannot_be_exported_is_named_with_the_reason(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_finite_logits_is_refused(tmp_path):
    model = tiny()
    nn.init.constant_(model.fc.bias, float("nan"))
    with pytest.raises(ExportError, match="logits on random images are not finite"):
        export(model, tmp_path / "model.pt2", format="torch-export", image_size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_zeros_is_no_division_by_zero(tmp_path):
    model = tiny()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    assert export(model, tmp_path / "model.pt2", format="torch-export", image_size=SIZE).largest_logit == 0


@pytest.mark.parametrize(
    ("out", "arguments", "error", "message"),
    [
        ("model.pt2", {"format": "torch_export"}, ValueError, r"'torch_export'; did you mean torch-export\?"),
        (
            "model.pt",
            {"format": "aoti"},
            ValueError,
            r"model\.pt must end in \.pt2 for the format aoti; name it model\.pt2",
        ),
        ("model.pt2", {"format": "onnx"}, ValueError, r"must end in \.onnx for the format onnx; name it model\.onnx"),
        ("here.pt2", {"format": "aoti"}, OSError, r"here\.pt2 exists; remove it or choose another name"),
        ("no/model.pt2", {"format": "aoti"}, OSError, r"no is not a folder; create it"),
        ("model.pt2", {"format": "aoti", "image_size": 0}, ValueError, "at least 1, got 0 and 3"),
        ("model.pt2", {"format": "aoti", "opset": 17}, ValueError, "opset 17 needs the format onnx, got aoti"),
        ("model.onnx", {"format": "onnx", "opset": 10}, ValueError, "opset must be 11 to 17, got 10; leave it out"),
        ("model.onnx", {"format": "onnx", "opset": 18}, ValueError, "opset must be 11 to 17, got 18; leave it out"),
    ],
)
def test_arguments_that_do_not_fit_are_named_with_the_remedy(out, arguments, error, message, tmp_path):
    (tmp_path / "here.pt2").write_bytes(b"precious")
    with pytest.raises(error, match=message):
        export(tiny(), tmp_path / out, **arguments)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"precious"]


def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    message = r"format onnx needs onnx, onnxscript, onnxruntime: pip install 'resnet-core\[export\]'"
    with pytest.raises(ExportError, match=message):
        export(tiny(), tmp_path / "model.onnx", format="onnx", image_size=SIZE)


def test_a_missing_compiler_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_compiler_search.cache_clear()  # of what it found for the tests before
    with pytest.raises(ExportError, match=r"format aoti needs a C\+\+ compiler: install g\+\+"):
        export(tiny(), tmp_path / "model.pt2", format="aoti", image_size=SIZE)
