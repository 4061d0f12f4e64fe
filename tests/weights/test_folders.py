"""Folders that timm or transformers saved: their description is checked, and predict and load_model follow it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_core
from resnet_core.data.images import read_image
from resnet_core.data.transforms import ImageTransform
from resnet_core.weights import WeightsError, WeightsInfo, inspect_weights, read_info, read_weights, write_weights
from resnet_core.weights.folders import read_description
from resnet_core.weights.pretrained import load_model, open_weights

# As timm's save_for_hf writes it, and as the Hub's microsoft/resnet-18 and what ResNetConfig saves look.
TIMM = {
    "architecture": "resnet18",
    "num_classes": 4,
    "num_features": 512,
    "global_pool": "avg",
    "label_names": ["kind0", "kind1", "kind2", "kind3"],
    "model_args": {"num_classes": 4, "in_chans": 3, "global_pool": "avg"},
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.6, 0.7],
    },
}
TRANSFORMERS = {
    "architectures": ["ResNetForImageClassification"],
    "model_type": "resnet",
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic",
    "id2label": {"0": "cat", "1": "dog"},
}
PROCESSOR = {
    "image_processor_type": "ConvNextImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_pct": 0.875,
    "resample": 3,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


@pytest.fixture
def folder(tmp_path):
    """Writes a folder's descriptions: texts as they are, other values as JSON."""

    def write(config, processor=None):
        for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
            if content is not None:
                (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """The file of a resnet18 with 4 classes that says nothing of itself."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_weights(path, resnet_core.resnet18(num_classes=4).state_dict())
    return path


def changed(config, **trained):
    return config | {"pretrained_cfg": config["pretrained_cfg"] | trained}


def test_timms_description(folder):
    described = read_description(folder(TIMM))
    assert (described.library, described.architecture, described.model) == ("timm", "resnet18", "resnet18")
    assert described.config == {"num_classes": 4}
    assert described.class_names == ("kind0", "kind1", "kind2", "kind3")
    assert described.transform == ImageTransform(
        resize_size=235, crop_size=224, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), interpolation="bicubic"
    )


@pytest.mark.parametrize(
    ("trained", "sizes"),
    [
        ({"test_input_size": [3, 288, 288], "test_crop_pct": 1.0}, (288, 288)),
        ({"test_input_size": [3, 288, 288]}, (303, 288)),
        ({"input_size": [3, 176, 176], "test_crop_pct": None, "crop_pct": None}, (201, 176)),
    ],
    ids=str,
)
def test_timms_test_size_is_preferred_to_the_size_of_training(trained, sizes, folder):
    transform = read_description(folder(changed(TIMM, **trained))).transform
    assert (transform.resize_size, transform.crop_size) == sizes


def test_timms_flat_file_of_before_version_0_8(folder):
    flat = {"architecture": "resnet34", "num_classes": 2, "labels": ["a", "b"], **TIMM["pretrained_cfg"]}
    described = read_description(folder(flat))
    assert (described.model, described.class_names) == ("resnet34", ("a", "b"))
    assert described.transform.resize_size == 235


def test_timms_arguments_become_the_builders(folder):
    config = TIMM | {"architecture": "resnet50.a1_in1k", "model_args": {"in_chans": 1, "output_stride": 8}}
    described = read_description(folder(changed(config, mean=[0.4], std=[0.2])))
    assert described.model == "resnet50"
    assert described.config == {
        "num_classes": 4,
        "in_channels": 1,
        "replace_stride_with_dilation": [False, True, True],
    }
    assert described.transform.mean == (0.4,)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"0": "a", "3": "d"}, ("a", "1", "2", "d")),
        (["n01440764", "n01443537", "n01484850", "n01491361"], ("tench", "goldfish", "shark", "tiger shark")),
    ],
    ids=["with gaps", "WordNet"],
)
def test_timms_class_names(labels, names, folder):
    words = {"n01440764": "tench", "n01443537": "goldfish", "n01484850": "shark", "n01491361": "tiger shark"}
    described = read_description(folder(TIMM | {"label_names": labels, "label_descriptions": words}))
    assert described.class_names == names


def test_transformers_description(folder):
    described = read_description(folder(TRANSFORMERS, PROCESSOR))
    assert (described.library, described.model) == ("transformers", "resnet18")
    assert described.architecture == "ResNetForImageClassification"
    assert described.config == {"num_classes": 2}
    assert described.class_names == ("cat", "dog")
    assert described.transform == ImageTransform(
        resize_size=256, crop_size=224, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bicubic"
    )


def test_a_network_of_transformers_without_a_head_has_no_classes(folder):
    described = read_description(folder(TRANSFORMERS | {"architectures": ["ResNetModel"]}))
    assert (described.model, described.config, described.class_names) == ("resnet18", {}, None)


def test_transformers_resnet50_v1_is_recognised(folder):
    described = read_description(folder({"model_type": "resnet", "downsample_in_bottleneck": True}))
    assert (described.model, described.config) == ("resnet50", {"stride_in_1x1": True})
    assert described.transform is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": 224, "crop_pct": None}, {}),
        ({"do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1)}),
        ({"resample": 2}, {"interpolation": "bilinear"}),
        ({"image_mean": [0.5], "image_std": [0.5]}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        (
            {
                "image_processor_type": "BitImageProcessor",
                "size": {"shortest_edge": 224},
                "do_center_crop": True,
                "crop_size": {"height": 200, "width": 200},
            },
            {"resize_size": 224, "crop_size": 200},
        ),
    ],
    ids=str,
)
def test_transformers_preparations(change, expected, folder):
    usual = read_description(folder(TRANSFORMERS, PROCESSOR)).transform
    described = read_description(folder(TRANSFORMERS, PROCESSOR | change))
    assert vars(described.transform) == vars(usual) | expected
    assert described.caveat == ""


UNFIT = {
    "squashed": (changed(TIMM, crop_mode="squash"), None, "crop_mode 'squash'"),
    "lanczos": (changed(TIMM, interpolation="lanczos"), None, "interpolation 'lanczos'"),
    "oblong": (changed(TIMM, input_size=[3, 224, 256]), None, r"input_size \[224, 256\], which is not square"),
    "tiny crop": (changed(TIMM, crop_pct=0.02), None, "more than 4096"),
    "means": (changed(TIMM, mean=[0.5, 0.5]), None, "2 means and 3 deviations for images of 3 channels"),
    "four channels": (TIMM | {"model_args": {"in_chans": 4}}, None, "prepare images in Python"),
    "384": (TRANSFORMERS, PROCESSOR | {"size": 384}, "with size 384"),
    "no size": (TRANSFORMERS, {}, "with size None"),
    "oblong resize": (TRANSFORMERS, PROCESSOR | {"size": {"height": 224, "width": 224}}, "a shortest edge"),
    "a square": (
        TRANSFORMERS,
        PROCESSOR
        | {"image_processor_type": "ViTImageProcessor", "size": 256, "do_center_crop": True, "crop_size": 224},
        "'ViTImageProcessor' with size 256",
    ),
    "nearest": (TRANSFORMERS, PROCESSOR | {"resample": 0}, "resample 0"),
    "as it is": (TRANSFORMERS, PROCESSOR | {"do_resize": False, "do_rescale": False}, "do_resize and do_rescale false"),
    "to 2": (TRANSFORMERS, PROCESSOR | {"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
}


@pytest.mark.parametrize(("config", "processor", "words"), UNFIT.values(), ids=UNFIT)
def test_a_preparation_that_cannot_be_followed_is_named(config, processor, words, folder):
    described = read_description(folder(config, processor))
    assert described.transform is None
    assert described.model == "resnet18"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(described.caveat)


WRONG = {
    "not JSON": ("{", None, r"config\.json is not JSON"),
    "a list": ("[]", None, r"config\.json must hold a JSON object"),
    "deep": ("[" * 100_000, None, r"config\.json is not JSON"),
    "twice": ('{"architecture": "resnet18", "architecture": "resnet34"}', None, "appears more than once"),
    "too long": (" " * (8 << 20) + "{}", None, "more than 8388608 bytes"),
    "architecture": ({"architecture": 18}, None, "architecture 18, which must be a word"),
    "escapes": (TIMM | {"architecture": "resnet18.\33[2J"}, None, r"architecture 'resnet18\.\\x1b\[2J', which must be"),
    "classes": (TIMM | {"num_classes": 2**40}, None, "num_classes 1099511627776, which must be a whole number from 0"),
    "true": (TIMM | {"num_classes": True}, None, "num_classes True"),
    "channels": (TIMM | {"model_args": {"in_chans": -1}}, None, r"model_args\.in_chans -1"),
    "true channels": (TIMM | {"model_args": {"in_chans": True}}, None, r"model_args\.in_chans True"),
    "stride": (TIMM | {"model_args": {"output_stride": 8.0}}, None, r"model_args\.output_stride 8\.0.* 8, 16 or 32"),
    "share": (changed(TIMM, crop_pct=0), None, r"pretrained_cfg\.crop_pct 0, which must be a number from 0.01 to 1"),
    "size": (changed(TIMM, input_size=[3, 10**9, 10**9]), None, r"pretrained_cfg\.input_size \[3, 1000000000, "),
    "deviation": (changed(TIMM, std=[0.1, 0.1, 0]), None, r"std \[0\.1, 0\.1, 0\].* above 0"),
    "NaN": (changed(TIMM, mean=[float("nan")] * 3), None, r"mean \[nan, nan, nan\]"),
    "names": (TIMM | {"label_names": ["a"] * 5}, None, "label_names with names for 4, and its classes are 0 to 3"),
    "numbers": (TIMM | {"label_names": {"x": "a"}}, None, "label_names with names for x"),
    "long": (TIMM | {"label_names": "a" * 1000}, None, r"label_names 'a+\.\.\., which must be at most"),
    "depths": (TRANSFORMERS | {"depths": [2, "2"]}, None, r"depths \[2, '2'\], which must be a list"),
    "labels": (TRANSFORMERS | {"id2label": {"0": 1}}, None, "id2label {'0': 1}"),
    "flag": (TRANSFORMERS, PROCESSOR | {"do_resize": 1}, r"preprocessor_config\.json has do_resize 1, which must be"),
    "edge": (TRANSFORMERS, PROCESSOR | {"size": {"shortest_edge": 10**6}}, r"size\.shortest_edge 1000000"),
}


@pytest.mark.parametrize(("config", "processor", "words"), WRONG.values(), ids=WRONG)
def test_a_value_that_cannot_be_true_is_refused_with_file_key_and_value(config, processor, words, folder):
    with pytest.raises(WeightsError, match=rf"config\.json.*{words}|{words}"):
        read_description(folder(config, processor))


def test_other_descriptions_are_none(folder, tmp_path):
    assert read_description(tmp_path) is None
    assert read_description(folder({"lr": 0.1})) is None


OTHERS = {
    "resnetblur50": "blurs before each stride",
    "resnetaa50": "averages before each stride",
    "resnet50d": "has another stem",
    "resnext50d_32x4d": "has another stem",
    "resnet50_gn": "GroupNorm",
    "seresnet50": "attention",
    "resnetv2_50": "normalise before they convolve",
    "vit_base_patch16_224": "is not a network of resnet_core",
}


@pytest.mark.parametrize(("architecture", "words"), OTHERS.items())
def test_another_network_of_timm_is_refused_by_name_with_the_reason(architecture, words, folder):
    path = folder(TIMM | {"architecture": architecture})
    write_weights(path / "model.safetensors", {"conv1.weight": torch.zeros(1)})
    for load in (load_model, lambda path: resnet_core.resnet18(weights=path / "model.safetensors")):
        with pytest.raises(
            WeightsError, match=rf"architecture '{architecture}', wh.*{words}.*timm\.create_model\('local"
        ):
            load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_pool": "max"}, "global_pool 'max', which has resnet18's tensors and gives other logits"),
        (
            {"model_args": {"act_layer": "gelu", "drop_rate": 0.1}},
            "model_args act_layer, which may make another",
        ),
    ],
    ids=str,
)
def test_a_network_of_our_name_with_other_parts_is_refused(change, words, folder):
    described = read_description(folder({key: value for key, value in TIMM.items() if key != "model_args"} | change))
    assert (described.model, words in described.refusal) == (None, True)


def test_another_network_of_transformers_is_refused_by_name(folder):
    for change, words in (({"model_type": "vit"}, "model_type 'vit'"), ({"depths": [9, 9]}, r"depths \[9, 9\]")):
        described = read_description(folder(TRANSFORMERS | change))
        assert described.model is None
        with pytest.raises(WeightsError, match=rf"{words}.*AutoModel\.from_pretrained"):
            described.info()


def test_predict_prepares_images_and_names_classes_as_the_folder_says(folder, tensors, cli):
    path = folder(TIMM)
    (path / "model.safetensors").symlink_to(tensors)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (250, 300, 3), np.uint8)).save(path / "x.png")
    model, _ = load_model(path)
    transform = read_description(path).transform
    expected = model(transform(read_image(path / "x.png"))[None])[0].softmax(0)

    finished = cli("predict", path, path / "x.png", "--json")
    classes = json.loads(finished.stdout)[0]["classes"]
    assert [each["name"] for each in classes] == [f"kind{each['index']}" for each in classes]
    assert [each["probability"] for each in classes] == pytest.approx(sorted(expected.tolist(), reverse=True))
    assert "resnet18 of timm, as its config.json describes it" in finished.stderr
    assert "V1 sets" not in finished.stderr
    assert resnet_core.resnet18(weights=path / "model.safetensors").fc.out_features == 4


def test_weights_in_several_files_are_read_from_their_index(folder, tensors):
    path, state = folder(TIMM), read_weights(tensors)
    places = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(state)}
    for file in set(places.values()):
        write_weights(path / file, {name: state[name] for name, place in places.items() if place == file})
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    model, info = load_model(path)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert info.class_names == ("kind0", "kind1", "kind2", "kind3")
    assert open_weights(path).info.transform == info.transform == read_description(path).transform


def test_what_the_folder_leaves_open_is_assumed_and_said(folder, tensors):
    path = folder(TRANSFORMERS | {"id2label": None})
    (path / "model.safetensors").symlink_to(tensors)
    assert load_model(path)[1].origin == (
        "ResNetForImageClassification of transformers, as its config.json describes it; images are prepared as for "
        "torchvision's V1 sets"
    )
    (path / "model.safetensors").unlink()
    write_weights(path / "model.safetensors", resnet_core.resnet18(num_classes=4, small_images=True).state_dict())
    info = load_model(path)[1]
    assert info.origin.endswith("images are prepared as for CIFAR-10, with its mean and deviation at 32 pixels")
    assert info.transform.crop_size == 32


def test_the_files_own_record_is_preferred(folder, tensors):
    path = folder(TIMM | {"architecture": "resnetblur18"})
    own = WeightsInfo(model="resnet18", config={"num_classes": 4})
    write_weights(path / "model.safetensors", read_weights(tensors), own)
    assert load_model(path)[1] == inspect_weights(path).info == own


def test_a_preparation_that_cannot_be_followed_is_a_warning(folder, tensors):
    path = folder(changed(TIMM, crop_mode="squash"))
    (path / "model.safetensors").symlink_to(tensors)
    with pytest.warns(UserWarning, match=r"crop_mode 'squash'.*resnet-core convert .* --resize-size"):
        assert load_model(path)[1].transform is None


def test_bicubic_is_recorded_and_bilinear_files_are_those_of_before(tmp_path):
    for interpolation in ("bicubic", "bilinear"):
        info = WeightsInfo(
            model="resnet18", transform=ImageTransform(resize_size=9, crop_size=8, interpolation=interpolation)
        )
        write_weights(tmp_path / "x.safetensors", {"x": torch.zeros(1)}, info)
        assert read_info(tmp_path / "x.safetensors") == info
    assert "interpolation" not in info.to_metadata()["resnet_core"]


def test_interpolation_changes_the_pixels_and_an_unknown_one_is_refused():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    bilinear, bicubic = (
        ImageTransform(resize_size=9, crop_size=8, interpolation=each) for each in ("bilinear", "bicubic")
    )
    assert not bilinear(image).equal(bicubic(image))
    with pytest.raises(ValueError, match="interpolation must be bilinear or bicubic, got 'nearest'"):
        ImageTransform(resize_size=9, crop_size=8, interpolation="nearest")
