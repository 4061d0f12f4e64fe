"""What docs/parity.md gives people for their own CI: ten lines of pytest, and a workflow."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torchvision

import resnet_core
from resnet_core.models.backbone import Backbone
from resnet_core.models.resnet import BasicBlock

PAGE = (Path(__file__).parents[2] / "docs" / "parity.md").read_text().partition("## In your own CI\n")[2]


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[1]


def theirs(**config):
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10, **config)


def run_the_test(monkeypatch, **config):
    """The page's test, with small networks in place of the ResNet-50 that it names."""
    monkeypatch.setattr(resnet_core, "resnet50", partial(Backbone, BasicBlock, (1, 1, 1, 1), 10))
    monkeypatch.setattr(torchvision.models, "resnet50", partial(theirs, **config))
    names = {}
    exec(block("python"), names)
    names["test_my_resnet50_is_resnet50"]()


def test_ten_lines_hold_a_network_to_the_reference(monkeypatch):
    assert len([line for line in block("python").splitlines() if line]) <= 10
    run_the_test(monkeypatch)


def test_they_fail_with_the_cause(monkeypatch):
    norm_layer = partial(torchvision.models.resnet.nn.BatchNorm2d, eps=1e-3)
    with pytest.raises(AssertionError, match=r"the networks differ\nrung (?s:.)*BatchNorm.*eps"):
        run_the_test(monkeypatch, norm_layer=norm_layer)


def test_the_workflow_is_one(tmp_path):
    (tmp_path / "parity.yml").write_text(block("yaml"))
    arguments = ["--builtin-schema", "vendor.github-workflows", "parity.yml"]
    checked = subprocess.run([sys.executable, "-m", "check_jsonschema", *arguments], cwd=tmp_path, capture_output=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
