"""`resnet-core quantize`: an int8 file as accurate as it says, which other commands take and which is checked."""

import json
import re

import pytest
import torch

import resnet_core
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.optimize import read_quantized, write_quantized
from resnet_core.weights import WeightsInfo, load_model, write_weights

INFO = WeightsInfo(
    model="cifar_resnet20", config={"num_classes": 3}, transform=ImageTransform(resize_size=32, crop_size=32)
)
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet_core.optimize_for_inference(
        resnet_core.cifar_resnet20(num_classes=3), IMAGES, "int8", calibration=[IMAGES]
    )


def test_a_file_gives_the_same_bits_and_is_small(network, tmp_path):
    path = tmp_path / "int8.safetensors"
    write_quantized(path, network, INFO)
    read, info = read_quantized(path)
    assert torch.equal(read(IMAGES), network(IMAGES))
    assert torch.equal(read(IMAGES[:1]), network(IMAGES[:1]))
    assert read(IMAGES[:0]).shape == (0, 3)
    assert (info.model, info.transform, read.dtype) == ("cifar_resnet20", INFO.transform, "int8")
    write_weights(tmp_path / "float.safetensors", resnet_core.cifar_resnet20(num_classes=3).state_dict(), INFO)
    assert path.stat().st_size < 0.35 * (tmp_path / "float.safetensors").stat().st_size


def test_quantize_shows_the_accuracy_and_the_other_commands_take_the_file(digits_run, cli, program, tmp_path):
    out = tmp_path / "digits.safetensors"
    finished = program("quantize", digits_run[0], out, "--calibration", 64)
    assert finished.stderr == f"cifar_resnet20, resnet_core {resnet_core.__version__}, trained on digits\n"
    *scores, written = finished.stdout.splitlines()
    for name, line in zip(("before", "bfloat16", "int8"), scores, strict=True):
        assert re.fullmatch(rf"{name} +top-1 99\.\d+% \(\d+ of 360\), top-5 .*", line)
    assert re.fullmatch(rf"{re.escape(str(out))}: 0\.3 MB", written)

    assert cli("evaluate", out, "--dataset", "digits").stdout.strip() == scores[-1].removeprefix("int8").strip()
    assert "cifar_resnet20 in int8; `predict`, `evaluate` and `embed` take it" in cli("inspect", out).stdout
    for words in (
        ("export", out, tmp_path / "x.pt2", "--format", "torch-export"),
        ("convert", out, tmp_path / "x.safetensors"),
    ):
        refused = cli(*words)
        assert refused.returncode == 2
        assert "holds a network in int8, which predicts and cannot be trained, exported or converted" in refused.stderr


def test_a_loss_that_is_too_large_is_refused_and_nothing_is_written(digits_run, cli, tmp_path, monkeypatch):
    scores = iter({"top1": top1, "top5": 1.0, "loss": 0.1, "count": 100} for top1 in (0.99, 0.99, 0.98))
    monkeypatch.setattr("resnet_core.cli.inference.evaluate_weights", lambda *_, **__: next(scores))
    finished = cli("quantize", digits_run[0], tmp_path / "x.safetensors", "--calibration", 8)
    assert finished.returncode == 2
    assert "int8 loses 1.00 points of top-1, and --max-loss is 0.5; " in finished.stderr
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, ranges: tensors.pop("fc.weight"), "other names or types of tensors"),
        (
            lambda tensors, ranges: tensors.update({"conv1_1_int8.weight": tensors["conv1_1_int8.weight"].float()}),
            "other names or",
        ),
        (lambda tensors, ranges: tensors.update({"fc.weight": torch.zeros(4, 64)}), "size mismatch for fc.weight"),
        (lambda tensors, ranges: ranges.pop("x"), "does not fit a cifar_resnet20 in int8"),
        (lambda tensors, ranges: ranges.update({"x": [0.0, 0]}), "steps above 0"),
        (lambda tensors, ranges: ranges.update({"x": [float("nan"), 0]}), "steps above 0"),
        (lambda tensors, ranges: ranges.update({"x": [0.1, 256]}), "zeros from 0 to 255"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(network, change, message, tmp_path):
    tensors, ranges = dict(network.network.state_dict()), dict(network.grids)
    change(tensors, ranges)
    path = tmp_path / "odd.safetensors"
    write_weights(path, tensors, WeightsInfo(model="cifar_resnet20", config={"num_classes": 3}, ranges=ranges))
    with pytest.raises(ValueError, match=message):
        read_quantized(path)


def test_files_are_not_mistaken_for_each_other(network, tmp_path):
    write_quantized(tmp_path / "int8.safetensors", network, INFO)
    with pytest.raises(ValueError, match=r"int8\.safetensors holds a network in int8, which predicts"):
        load_model(tmp_path / "int8.safetensors")
    write_weights(tmp_path / "float.safetensors", resnet_core.cifar_resnet20(num_classes=3).state_dict(), INFO)
    with pytest.raises(ValueError, match=r"holds no network in int8; `resnet-core quantize` writes one"):
        read_quantized(tmp_path / "float.safetensors")
    fast = resnet_core.optimize_for_inference(resnet_core.cifar_resnet20(), IMAGES, "float32")
    with pytest.raises(ValueError, match="only int8 has a file of its own"):
        write_quantized(tmp_path / "x.safetensors", fast, INFO)
    assert "ranges" not in json.dumps(INFO.to_metadata())
