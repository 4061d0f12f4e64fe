"""ONNX files of our models, run by onnxruntime as their users run them, compute what the model computes."""

import pytest
import torch

import resnet_core
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.export import EARLIER_OPSETS, export
from resnet_core.weights import WeightsInfo

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.interop

MODELS = {
    "resnet18": (lambda: resnet_core.resnet18(), 3, 64),
    "resnet50": (lambda: resnet_core.resnet50(), 3, 64),
    "grey CIFAR": (lambda: resnet_core.cifar_resnet20(in_channels=1), 1, 28),
    "small images": (lambda: resnet_core.resnet18(small_images=True, num_classes=10), 3, 32),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def exported(request, tmp_path_factory):
    """A model, its file, what `export` said, and the channels and size of its images."""
    build, channels, size = request.param
    torch.manual_seed(0)
    model = build()
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    result = export(model, file, format="onnx", image_size=size, channels=channels)
    return model.eval(), file, result, channels, size


def session(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnxruntime_computes_what_the_model_computes(exported, batch):
    model, file, _, channels, size = exported
    images = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(100 + batch))
    (logits,) = session(file).run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = model.double()(images.double())
    atol = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(torch.from_numpy(logits).double(), expected, rtol=0, atol=atol)


def test_the_file_names_its_input_its_output_and_the_free_batch(exported):
    _, file, _, channels, size = exported
    runner = session(file)
    assert [(value.name, value.shape) for value in runner.get_inputs()] == [("images", ["batch", channels, size, size])]
    assert [(value.name, value.shape[0]) for value in runner.get_outputs()] == [("logits", "batch")]


def test_the_file_is_whole_valid_and_of_the_opset_that_is_reported(exported):
    _, file, result, *_ = exported
    onnx.checker.check_model(file, full_check=True)
    assert {entry.domain: entry.version for entry in onnx.load(file).opset_import}[""] == result.opset
    assert [other.name for other in file.parent.iterdir()] == ["model.onnx"]  # no weights beside it
    assert str(result).startswith(f"{file}: onnx opset {result.opset}, ")


def test_the_file_names_no_folder_of_the_machine_that_wrote_it(exported):
    assert b"site-packages" not in exported[1].read_bytes()
    assert b"resnet_core/" not in exported[1].read_bytes()


@pytest.mark.parametrize("opset", [None, 17])
def test_exporting_prints_nothing(opset, tmp_path, capfd):
    export(resnet_core.cifar_resnet20(), tmp_path / "model.onnx", format="onnx", image_size=32, opset=opset)
    assert capfd.readouterr().out == ""


INFO = WeightsInfo(
    model="resnet18",
    transform=ImageTransform(resize_size=64, crop_size=64, interpolation="bicubic"),
    class_names=("zero", "ö"),
    origin="a test",
)


@pytest.mark.parametrize("opset", [None, *EARLIER_OPSETS])
def test_a_file_of_any_opset_and_size_computes_what_the_model_computes_and_carries_its_info(opset, tmp_path):
    torch.manual_seed(0)
    model, file = resnet_core.resnet18().eval(), tmp_path / "model.onnx"
    result = export(model, file, format="onnx", image_size=64, opset=opset, dynamic_size=True, info=INFO)
    print(f"\n{result}")
    onnx.checker.check_model(file, full_check=True)
    assert opset in (None, result.opset)
    assert [entry.version for entry in onnx.load(file).opset_import if not entry.domain] == [result.opset]
    assert b"site-packages" not in file.read_bytes()

    runner = session(file)
    assert [(value.name, value.shape) for value in runner.get_inputs()] == [("images", ["batch", 3, "height", "width"])]
    assert WeightsInfo.from_metadata(runner.get_modelmeta().custom_metadata_map) == INFO
    for height, width in ((64, 64), (33, 97), (224, 160)):
        images = torch.randn(3, 3, height, width)
        (logits,) = runner.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            expected = model(images)
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=atol)
