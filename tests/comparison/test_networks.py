"""Networks that a text names, and what is said where it names none."""

import re

import pytest
import torchvision
from torch import nn

from resnet_core.comparison.networks import find_network
from resnet_core.models.resnet import ResNet

MODULE = """
from torch import nn
network = nn.Linear(2, 2)
number = 3
def fails():
    raise KeyError("depth")
def takes(depth): ...
def gives(): return 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "their_models.py").write_text(MODULE)
    (tmp_path / "broken_models.py").write_text("def build(:\n    pass\n")
    (tmp_path / "raising_models.py").write_text("import torch\nwrong\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    monkeypatch.delitem(__import__("sys").modules, "their_models", raising=False)


@pytest.mark.usefixtures("module")
def test_networks_are_found_by_what_a_text_names():
    assert isinstance(find_network("resnet18")(), ResNet)
    assert isinstance(find_network("torchvision:resnet18")(), torchvision.models.ResNet)
    assert isinstance(find_network("their_models:network"), nn.Linear)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet1", "unknown model 'resnet1'; did you mean"),
        ("their_models.py", "is not one of our models; name yours as module:function, their_models:FUNCTION"),
        ("torchvision:resnet81", "torchvision.models has no resnet81; did you mean"),
        ("no_such_package:f", "no_such_package cannot be imported (No module named 'no_such_package'); go to"),
        ("their_models:takes", "cannot be called without arguments (missing a required argument: 'depth')"),
        ("their_models:number", "is a int, not a function that builds a network"),
        ("broken_models:build", "cannot be imported (SyntaxError: "),
        ("raising_models:build", "cannot be imported (NameError: name 'wrong' is not defined, at "),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_text_that_names_no_network_is_refused(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        find_network(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("their_models:fails", r"raised KeyError: 'depth', at .*their_models\.py:6"),
        ("their_models:gives", "returns a int, not a torch.nn.Module"),
    ],
)
@pytest.mark.usefixtures("module")
def test_a_function_that_builds_no_network_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        find_network(spec)()
