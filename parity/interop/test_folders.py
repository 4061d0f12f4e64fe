"""Folders that timm and transformers saved: our preparation of images and our logits beside the library's own."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from parity.oracles.transformers import classifier
from resnet_core.cli.main import main
from resnet_core.data.transforms import ImageTransform
from resnet_core.foundation.precision import same_bits
from resnet_core.weights.convert import convert
from resnet_core.weights.files import read_info
from resnet_core.weights.folders import read_description
from resnet_core.weights.header import WeightsError
from resnet_core.weights.pretrained import load_model

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

SIZES = ((500, 375), (375, 500), (256, 256), (97, 640), (225, 227), (224, 231))  # width, height


@pytest.fixture(scope="module")
def pictures():
    """Smooth images with noise: where resampling rounds."""
    draw = np.random.default_rng(0)
    small = [Image.fromarray(draw.integers(0, 256, (9, 9, 3), np.uint8)) for _ in SIZES]
    smooth = [np.asarray(image.resize(size), np.int16) for image, size in zip(small, SIZES, strict=True)]
    return [
        Image.fromarray(np.clip(each + draw.integers(-20, 20, each.shape), 0, 255).astype(np.uint8)) for each in smooth
    ]


def timm_evaluation(config):
    from timm.data import create_transform, resolve_data_config

    return create_transform(**resolve_data_config(pretrained_cfg=config, use_test_size=True), is_training=False)


CONFIGS = {
    "a1": {"crop_pct": 0.95, "test_input_size": (3, 288, 288), "test_crop_pct": 1.0, "input_size": (3, 224, 224)},
    "torchvision's second": {"input_size": (3, 176, 176), "test_input_size": (3, 224, 224), "test_crop_pct": 0.965},
    "bilinear": {"interpolation": "bilinear", "crop_pct": 0.875, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)},
    "bicubic": {"interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
    "says nothing": {"num_classes": 1000},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_images_are_prepared_as_by_timm_bitwise(config, pictures, tmp_path):
    pytest.importorskip("timm")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": config}))
    ours, theirs = read_description(tmp_path).transform, timm_evaluation(config)
    for picture in pictures:
        assert same_bits(ours(picture), theirs(picture))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18.a1_in1k", {"num_classes": 10}),
        ("resnet18", {"num_classes": 10, "in_chans": 1}),
        ("resnet50.a1h_in1k", {"output_stride": 16}),
        ("resnet50", {"output_stride": 8, "num_classes": 7}),
    ],
)
@torch.no_grad()
def test_a_folder_of_timm_gives_its_logits_on_images_bitwise(name, options, pictures, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    names = [f"kind{number}" for number in range(options.get("num_classes", 1000))]
    saved = timm.create_model(name, **options)
    timm.models.save_for_hf(saved, tmp_path, model_config={"label_names": names}, safe_serialization=True)

    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    prepare = timm_evaluation(theirs.pretrained_cfg | {"in_chans": 1})
    ours, info = load_model(tmp_path)
    assert info.class_names == tuple(names)
    mode = "L" if options.get("in_chans") == 1 else "RGB"
    for picture in pictures[:2]:
        assert same_bits(ours(info.transform(picture)[None]), theirs(prepare(picture.convert(mode))[None]))


def test_convert_records_the_preparation_and_the_names_of_timms_folder(tmp_path):
    timm = pytest.importorskip("timm")
    saved, names = timm.create_model("resnet18", num_classes=3), ["a", "b", "c"]
    data = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 288, 288), "crop_pct": 1.0}
    timm.models.save_for_hf(saved, tmp_path, {"label_names": names}, safe_serialization=True, data_config=data)
    info = read_info(convert(tmp_path, tmp_path / "ours.safetensors", source="timm").path)
    assert (info.transform, info.class_names) == (read_description(tmp_path).transform, tuple(names))
    assert (info.transform.resize_size, info.transform.crop_size, info.transform.mean) == (288, 288, (0.5,) * 3)


def test_convert_records_the_preparation_and_the_names_of_transformers_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    classifier("resnet18", id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
        tmp_path
    )
    info = read_info(convert(tmp_path, tmp_path / "ours.safetensors", source="transformers").path)
    assert (info.transform, info.class_names) == (read_description(tmp_path).transform, ("cat", "dog"))
    assert (info.transform.interpolation, info.transform.mean) == ("bicubic", (0.1, 0.2, 0.3))


def test_a_preparation_that_cannot_be_followed_is_recorded_as_the_warning_says(tmp_path):
    timm = pytest.importorskip("timm")
    saved = timm.create_model("resnet18", num_classes=3)
    timm.models.save_for_hf(saved, tmp_path, safe_serialization=True, data_config={"crop_mode": "squash"})
    with pytest.warns(UserWarning, match="crop_mode 'squash'") as warned:
        load_model(tmp_path)
    remedy = re.search("record one with `resnet-core (.*?)`", str(warned[0].message))[1]
    out = tmp_path / "ours.safetensors"
    words = remedy.replace("NAME.safetensors", str(out)).replace("PIXELS", "224")
    assert main(words.split()) == 0
    assert load_model(out)[1].transform == ImageTransform(resize_size=224, crop_size=224)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnetblur18", {}, "'resnetblur18', which blurs before each stride"),
        ("resnetaa50", {}, "'resnetaa50', which averages before each stride"),
        ("resnet50_gn", {}, "'resnet50_gn', which has GroupNorm"),
        ("resnet18d", {}, "'resnet18d', which has another stem"),
        ("seresnet18", {}, "'seresnet18', whose blocks have attention"),
        ("resnetv2_18", {}, "'resnetv2_18', whose blocks normalise before"),
        ("resnet26", {}, "'resnet26', which is not a network of resnet_core"),
        ("resnet18", {"global_pool": "max"}, "global_pool 'max', which has resnet18's tensors"),
        ("resnet18", {"act_layer": "gelu"}, "model_args act_layer, which may make another network"),
    ],
)
@torch.no_grad()
def test_another_network_is_refused_by_name_and_timm_loads_it_as_said(name, options, words, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    saved = timm.create_model(name, num_classes=10, **options).eval()
    timm.models.save_for_hf(saved, tmp_path, safe_serialization=True)
    with pytest.raises(WeightsError, match=re.escape(words)) as error:
        load_model(tmp_path)

    remedy = str(error.value).partition("timm loads it: ")[2]
    theirs = eval(remedy, {"timm": timm}).eval()
    image = torch.randn(1, 3, 64, 64)
    assert same_bits(theirs(image), saved(image))


# transformers' crop begins at the margin's half rounded down, torchvision's and so ours at the nearest even number: an
# odd margin of 3, 7, 11 .. pixels moves the crop by one. Its default backend resizes tensors, which rounds a few levels
# differently; its Pillow backend resizes as we do.


@pytest.mark.parametrize("size", [224, 160])
@pytest.mark.parametrize(("backend", "levels"), [("Pil", 0), ("", 2)])
def test_images_are_prepared_as_by_transformers_but_for_rounding(size, backend, levels, pictures, tmp_path):
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"ConvNextImageProcessor{backend}")(size={"shortest_edge": size})
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    ours = read_description(tmp_path).transform
    for picture in pictures:
        theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
        apart = ((ours(picture) - theirs) * 0.5 * 255).abs()  # a deviation of 0.5, in levels of 0..255
        margin = int(ours.resize_size * max(picture.size) / min(picture.size)) - size
        if margin % 4 == 3:
            assert apart.max() > 10
        else:
            assert apart.max() <= levels + 1e-4
            assert (apart > 0.5).float().mean() < 0.01
