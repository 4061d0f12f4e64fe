"""Real libraries' weights converted to ours: the same logits, on other images than `convert` itself compares."""

import json
import re

import pytest
import torch
import torchvision

from parity.drop_in import difference, images
from parity.oracles.transformers import classifier
from resnet_core.builders import get_model
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.precision import same_bits
from resnet_core.weights.convert import convert
from resnet_core.weights.files import load_weights, read_info, write_weights
from resnet_core.weights.header import WeightsError
from resnet_core.weights.libraries import KERAS_EPSILON, NETWORKS
from resnet_core.weights.names import their_names

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

CLASSES = 5
TABLE = []


@pytest.fixture(scope="module", autouse=True)
def table(request):
    """Prints what was converted, when all is done."""
    yield
    rows = [f"{row.source:<14}{row.model:<20}{row.largest_difference:<12.3g}{row.config}" for row in TABLE]
    header = f"{'source':<14}{'model':<20}{'difference':<12}config"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", header, *rows, sep="\n")


def converted(src, folder, **options):
    """Our network with the converted weights, and what `convert` said."""
    conversion = convert(src, folder / "ours.safetensors", **options)
    TABLE.append(conversion)
    info = read_info(conversion.path)
    ours = get_model(info.model, **info.config)
    load_weights(ours, conversion.path)
    conversion.path.unlink()
    return ours.eval(), conversion


def other_images():
    return images(seed=7, batch=1, size=97)  # odd: where padding shows


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in NETWORKS), ("resnet50", {"output_stride": 8})])
@torch.no_grad()
def test_timm_weights_give_timms_logits_bitwise(name, options, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=CLASSES, **options)
    calibrate(theirs, images(seed=1, batch=4))
    write_weights(tmp_path / "model.safetensors", theirs.state_dict())
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": options}))
    ours, conversion = converted(tmp_path, tmp_path, source="timm")
    assert (conversion.model, conversion.largest_difference) == (name, 0.0)
    assert same_bits(ours(other_images()), theirs(other_images()))


def transformers_model(name, **options):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = classifier(name, id2label={label: f"class {label}" for label in range(CLASSES)}, **options)
    calibrate(model, images(seed=1, batch=4))
    return model


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet18", {}, {}),
        ("resnet34", {}, {}),
        ("resnet50", {}, {}),
        ("resnet50", {"downsample_in_bottleneck": True}, {"stride_in_1x1": True}),
        ("resnet101", {}, {}),
        ("resnet152", {}, {}),
    ],
)
@torch.no_grad()
def test_a_transformers_folder_gives_its_logits_bitwise(name, options, expected, tmp_path):
    theirs = transformers_model(name, **options)
    theirs.save_pretrained(tmp_path)
    assert set(their_names("transformers", get_model(name).state_dict()).values()) == set(theirs.state_dict())
    ours, conversion = converted(tmp_path, tmp_path, source="transformers")
    assert conversion.config == {**expected, "num_classes": CLASSES}
    assert conversion.largest_difference == 0.0
    assert same_bits(ours(other_images()), theirs(other_images()).logits)


def test_transformers_class_names_are_kept(tmp_path):
    transformers_model("resnet18").save_pretrained(tmp_path)
    conversion = convert(tmp_path, tmp_path / "ours.safetensors", source="transformers")
    assert read_info(conversion.path).class_names == tuple(f"class {label}" for label in range(CLASSES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', which is not a network of resnet_core"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage True, which is not a network of"),
        ({"embedding_size": 32}, "embedding_size 32, which is not a network of resnet_core"),
    ],
)
def test_transformers_variants_are_refused(options, message, tmp_path):
    transformers_model("resnet50", **options).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path, tmp_path / "ours.safetensors", source="transformers")
    assert not (tmp_path / "ours.safetensors").exists()


def test_a_transformers_config_that_does_not_fit_is_refused(tmp_path):
    transformers_model("resnet18").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"depths": [1, 1, 1, 1]}, {"layer_type": "other"}, {"hidden_sizes": "none"}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(WeightsError):
            convert(tmp_path, tmp_path / "ours.safetensors", source="transformers")


def keras_model(name, monkeypatch, **options):
    """keras.applications' network, its BatchNorm statistics those of random images, its biases not zero."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    builders = {
        "resnet50": keras.applications.ResNet50,
        "resnet101": keras.applications.ResNet101,
        "resnet152": keras.applications.ResNet152,
        "resnet50v2": keras.applications.ResNet50V2,
    }
    keras.utils.set_random_seed(0)
    options = {"classes": CLASSES, "classifier_activation": None, "input_shape": (97, 97, 3)} | options
    model = builders[name](weights=None, **options)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.epsilon == KERAS_EPSILON
            layer.momentum = 0.5  # with the next batch's statistics alone, float32 itself is 6e-5 from float64
        elif isinstance(layer, keras.layers.Conv2D) and layer.use_bias:
            layer.bias.assign(keras.random.normal(layer.bias.shape))
    with torch.no_grad():
        model(images(seed=1, batch=4, size=97).permute(0, 2, 3, 1), training=True)
    return model


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("resnet50", ".weights.h5"),
        ("resnet50", ".h5"),
        ("resnet50", ".keras"),
        ("resnet101", ".weights.h5"),
        ("resnet152", ".weights.h5"),
    ],
)
@torch.no_grad()
def test_keras_weights_give_its_logits_within_2e_5(name, ending, tmp_path, monkeypatch):
    theirs = keras_model(name, monkeypatch)
    src = tmp_path / f"model{ending}"
    (theirs.save_weights if ending == ".weights.h5" else theirs.save)(src)
    ours, conversion = converted(src, tmp_path, source="keras")
    assert conversion.model == name
    assert conversion.config == {"stride_in_1x1": True, "num_classes": CLASSES}
    assert 0 < conversion.largest_difference <= 2e-5
    logits = torch.as_tensor(theirs(other_images().permute(0, 2, 3, 1), training=False))
    assert difference(ours(other_images()), logits) <= 2e-5
    v15 = get_model(name, num_classes=CLASSES).eval()
    v15.load_state_dict(ours.state_dict())
    assert difference(v15(other_images()), logits) > 1e-2


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
@torch.no_grad()
def test_a_network_of_keras_without_its_top_gives_its_last_map(ending, tmp_path, monkeypatch):
    theirs = keras_model("resnet50", monkeypatch, include_top=False)
    src = tmp_path / f"model{ending}"
    (theirs.save_weights if ending == ".weights.h5" else theirs.save)(src)
    conversion = convert(src, tmp_path / "ours.safetensors")
    assert conversion.config == {"stride_in_1x1": True}
    assert 0 < conversion.largest_difference <= 2e-4  # of values up to 10
    ours = get_model("resnet50", stride_in_1x1=True).eval()
    load_weights(ours, conversion.path, new_head=True)
    map = torch.as_tensor(theirs(other_images().permute(0, 2, 3, 1), training=False)).permute(0, 3, 1, 2)
    assert difference(ours.forward_features(other_images()), map) <= 2e-5 * max(1, map.abs().max())


@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_the_second_version_of_keras_is_refused(ending, tmp_path, monkeypatch):
    theirs = keras_model("resnet50v2", monkeypatch)
    src = tmp_path / f"model{ending}"
    (theirs.save_weights if ending == ".weights.h5" else theirs.save)(src)
    with pytest.raises(WeightsError, match=r"does not fit Keras' resnet50 .*V2 is another network"):
        convert(src, tmp_path / "ours.safetensors", source="keras")
    assert not (tmp_path / "ours.safetensors").exists()


def test_a_network_of_keras_inside_another_is_saved_alone_as_the_refusal_says(tmp_path, monkeypatch):
    body = keras_model("resnet50", monkeypatch, include_top=False, pooling="avg")
    keras = pytest.importorskip("keras")
    model = keras.Sequential([body, keras.layers.Dense(3)])
    model.save(tmp_path / "transfer.keras")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="save it in Keras with") as error:
        convert("transfer.keras", "ours.safetensors")
    remedy = re.search(r"save it in Keras with (.*\))", str(error.value))[1]
    eval(remedy, {"model": model})
    assert convert("NAME.weights.h5", "ours.safetensors").largest_difference <= 2e-4


@pytest.mark.parametrize("ending", [".h5", ".weights.h5", ".keras"])
def test_files_that_keras_did_not_write_are_refused(ending, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("keras")
    for content in (b"", b"abc", b"\x89HDF\r\n\x1a\n" + b"\0" * 100):
        (tmp_path / f"model{ending}").write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as"):
            convert(tmp_path / f"model{ending}", tmp_path / "ours.safetensors", source="keras")


@torch.no_grad()
def test_a_checkpoint_of_composers_trainer_gives_its_logits_bitwise(tmp_path):
    composer = pytest.importorskip("composer")
    models = pytest.importorskip("composer.models")
    torch.manual_seed(0)
    model = models.ComposerClassifier(torchvision.models.resnet18(num_classes=CLASSES), num_classes=CLASSES)
    samples = torch.utils.data.TensorDataset(images(batch=4), torch.arange(4))
    with torch.enable_grad():
        trainer = composer.Trainer(
            model=model,
            train_dataloader=torch.utils.data.DataLoader(samples, batch_size=4),
            optimizers=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
            max_duration="1ba",
            progress_bar=False,
            device="cpu",
        )
        trainer.fit()
    src = trainer.save_checkpoint(str(tmp_path / "checkpoint.pt"))
    ours, conversion = converted(src, tmp_path, source="composer", allow_pickle=True)
    assert (conversion.model, conversion.largest_difference) == ("resnet18", 0.0)
    assert same_bits(ours(other_images()), model.module.eval()(other_images()))
