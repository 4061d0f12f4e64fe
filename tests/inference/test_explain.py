"""Grad-CAM heat maps beside the arithmetic of the paper that they extend, and the pictures that `explain` writes."""

import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import resnet_core
from resnet_core.data.images import read_image
from resnet_core.data.transforms import ImageTransform
from resnet_core.inference.explain import denormalized, explain, heat_maps
from resnet_core.models.resnet import BasicBlock
from resnet_core.weights import WeightsInfo, write_weights

TRANSFORM = ImageTransform(resize_size=32, crop_size=32)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "2.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    info = WeightsInfo(
        model="cifar_resnet20", config={"num_classes": 3}, transform=TRANSFORM, class_names=("cat", "$x$", "<b>")
    )
    write_weights(path, resnet_core.cifar_resnet20(num_classes=3).state_dict(), info)
    return path


@pytest.mark.parametrize("build", [resnet_core.cifar_resnet20, lambda: resnet_core.ResNet(BasicBlock, [1, 1, 1, 1])])
def test_the_heat_map_is_the_sum_of_the_last_maps_weighted_by_the_head(build):
    # Zhou et al. 2016 (arXiv:1512.04150), which Grad-CAM equals where a linear head follows global average pooling.
    torch.manual_seed(0)
    model, inputs = build().eval(), torch.randn(2, 3, 64, 64)
    maps = []
    last = list(model.children())[-3]
    handle = last.register_forward_hook(lambda module, _, output: maps.append(output.detach()))
    with torch.no_grad():
        model(inputs)
    handle.remove()

    expected = torch.einsum("nk,nkhw->nhw", model.fc.weight[[1, 2]].detach(), maps[0]).relu()[:, None]
    expected = F.interpolate(expected, (64, 64), mode="bilinear")[:, 0]
    expected = expected / expected.amax(dim=(1, 2), keepdim=True)
    assert torch.allclose(heat_maps(model, inputs, [1, 2]), expected, atol=1e-5)


def test_where_nothing_speaks_for_a_class_the_map_is_0():
    model = resnet_core.cifar_resnet20().eval()
    torch.nn.init.constant_(model.fc.weight, -1)
    assert torch.equal(heat_maps(model, torch.randn(1, 3, 32, 32), [0]), torch.zeros(1, 32, 32))


def test_the_class_is_the_likeliest_or_the_one_asked_for(weights, photographs):
    model = resnet_core.cifar_resnet20(weights=weights).eval()
    names = ("cat", "$x$", "<b>")
    likeliest = explain(model, TRANSFORM, photographs / "0.png", names)
    others = [explain(model, TRANSFORM, photographs / "0.png", names, asked) for asked in ("cat", "1", "<b>")]
    assert [each.guess.index for each in others] == [0, 1, 2]
    assert likeliest.guess == max((each.guess for each in others), key=lambda guess: guess.probability)
    assert torch.equal(likeliest.heat, others[likeliest.guess.index].heat)
    assert not torch.equal(others[0].heat, others[1].heat)


def test_the_picture_shows_the_pixels_that_the_network_got(photographs):
    transform = ImageTransform(resize_size=32, crop_size=32, mean=(0.2, 0.5, 0.7), std=(0.1, 0.2, 0.3))
    image = read_image(photographs / "0.png")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.allclose(denormalized(transform(image), transform), pixels, atol=1e-6)


def test_a_picture_is_written_for_each_image_and_what_cannot_be_read_is_named(weights, photographs, cli, tmp_path):
    long = shutil.copy(photographs / "0.png", tmp_path / f"{'n' * 251}.png")
    finished = cli("explain", weights, photographs, long, "--out", tmp_path / "heat", "--class", "$x$")
    assert finished.returncode == 1
    assert finished.stdout == f"{tmp_path / 'heat'}: 3 of 4 images\n"
    assert "2.png is not a whole image" in finished.stderr
    assert sorted(path.name for path in (tmp_path / "heat").iterdir()) == [
        "1-0.png.png",
        "2-1.png.png",
        f"4-{'n' * 50}.png",
    ]
    with Image.open(tmp_path / "heat" / "1-0.png.png") as picture:
        assert picture.size == (800, 440)


def test_mistakes_are_refused_before_a_folder_is_made(weights, photographs, cli, tmp_path, monkeypatch):
    unknown = cli("explain", weights, photographs, "--out", tmp_path / "heat", "--class", "dog")
    assert "the network has no class 'dog'; known are cat, $x$, <b>" in unknown.stderr
    existing = cli("explain", weights, photographs, "--out", photographs)
    assert f"{photographs} exists; remove it or choose another folder" in existing.stderr
    monkeypatch.setitem(sys.modules, "captum", None)
    missing = cli("explain", weights, photographs, "--out", tmp_path / "heat")
    assert "heat maps need captum: pip install 'resnet-core[explain]'" in missing.stderr
    assert (unknown.returncode, existing.returncode, missing.returncode) == (2, 2, 2)
    assert not (tmp_path / "heat").exists()
