"""Hugging Face Hub's mixin: a folder of config.json and model.safetensors, there and back."""

import json

import pytest
import torch

import resnet_core
from parity.drop_in import images
from resnet_core.comparison.trace import calibrate
from resnet_core.foundation.precision import same_bits
from resnet_core.weights import WeightsError

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.interop


@pytest.fixture
def hub():
    from resnet_core.weights import hub

    return hub


def test_a_saved_model_comes_back_to_the_bit(hub, tmp_path):
    torch.manual_seed(0)
    model = hub.HubResNet("resnext50_32x4d", num_classes=7, replace_stride_with_dilation=[False, False, True])
    calibrate(model, images(seed=1, batch=4))
    model.save_pretrained(tmp_path)
    again = hub.HubResNet.from_pretrained(tmp_path)
    assert same_bits(again.eval()(images()), model.eval()(images()))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"name": "resnext50_32x4d", "num_classes": 7, "replace_stride_with_dilation": [False, False, True]}


@pytest.mark.parametrize("config", [{}, {"small_images": True}], ids=str)
def test_the_saved_file_is_a_file_of_weights_as_the_builders_read_it(hub, tmp_path, config):
    model = hub.HubResNet("resnet18", num_classes=5, **config)
    model.save_pretrained(tmp_path)
    assert same_bits(hub.HubResNet.from_pretrained(tmp_path).eval()(images()), model.eval()(images()))
    same = resnet_core.resnet18(weights=tmp_path / "model.safetensors")
    assert same_bits(same.eval()(images()), model.eval()(images()))


def test_a_new_head_is_saved_with_its_number_of_classes(hub, tmp_path):
    model = hub.HubResNet("resnet18")
    model.reset_classifier(5)
    model.save_pretrained(tmp_path)
    again = hub.HubResNet.from_pretrained(tmp_path)
    assert same_bits(again.eval()(images()), model.eval()(images()))


@pytest.mark.parametrize("config", [{"num_classes": 2**40}, {"foo": 1}, {"num_classes": "5"}], ids=str)
def test_a_hostile_config_is_refused(hub, tmp_path, config):
    hub.HubResNet("resnet18", num_classes=5).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"name": "resnet18", **config}))
    with pytest.raises(ValueError, match=r"config\.json sets"):
        hub.HubResNet.from_pretrained(tmp_path)


def test_what_does_not_fit_is_refused(hub, tmp_path):
    hub.HubResNet("resnet18", num_classes=5).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_classes": 6}))
    with pytest.raises(WeightsError, match=r"fc\."):
        hub.HubResNet.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown model 'resnet5'; did you mean"):
        hub.HubResNet("resnet5")
    with pytest.raises(ValueError, match="takes no norm_layer"):
        hub.HubResNet("resnet18", norm_layer=torch.nn.BatchNorm2d)


def test_a_pickle_on_the_hub_is_refused(hub, monkeypatch, tmp_path):
    from huggingface_hub import hub_mixin
    from huggingface_hub.errors import EntryNotFoundError

    def download(repo_id, filename, **options):
        if filename == "config.json":
            (tmp_path / filename).write_text('{"name": "resnet18"}')
            return str(tmp_path / filename)
        if filename == "model.safetensors":
            raise EntryNotFoundError("no model.safetensors")
        return f"/cache/{filename}"

    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle; convert it"):
        hub.HubResNet.from_pretrained("someone/resnet50")
