"""Networks that a text names, and what is said where it names none."""

import re
import sys

import pytest
import torchvision
from torch import nn

from resnet_core.comparison import imports
from resnet_core.comparison.networks import load, read
from resnet_core.models.resnet import ResNet

FILES = {
    "their_models.py": """
import json, torch
from torch import nn
network = nn.Linear(2, 2)
number = 3
def fails():
    raise KeyError("depth")
def deep():
    return torch.zeros(2) @ torch.zeros(3)
def library():
    return json.loads("no JSON")
def takes(depth, block): return nn.Linear(2, depth)
def sized(num_classes, channels=3): return nn.Linear(channels, num_classes)
def gives(): return 3
def passes(**config): return sized(**config)
""",
    "broken_models.py": "def build(:\n    pass\n",
    "raising_models.py": "import torch\ndef build(): return 3\nwrong\n",
    "one.py": """
from torch import nn
print("one is imported")
class Block(nn.Module):
    def __init__(self, channels): super().__init__()
class Net(nn.Module):
    pass
def build(width=2): return nn.Linear(width, width)
def test(): print(build())
""",
    "only_class.py": "from torch import nn\nclass Net(nn.Module): pass\n",
    "several.py": "from torch import nn\ndef small(): return nn.Linear(2, 2)\ndef large(): return nn.Linear(9, 9)\n",
    "blocks.py": "from torch import nn\nclass Block(nn.Module):\n    def __init__(self, width): pass\n"
    "class Net(nn.Module):\n    def __init__(self, n_blocks, num_classes): pass\n",
    "conditional.py": "from torch import nn\ntry:\n    import no_such_thing\nexcept ImportError:\n"
    "    def build(): return nn.Linear(6, 2)\n",
    "notebook.ipynb": "{}",
    "empty.py": "x = 3\n",
    "needs.py": "import os\nimport sklearn.no_such_part\ndef build(): pass\n",
    "trains.py": "import torch\ndef train():\n    torch.zeros(2) @ torch.zeros(3)\nbuild = 3\ntrain()\n",
    "options.py": """
import argparse
from torch import nn
parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=2)
options = parser.parse_args()
def build(): return nn.Linear(options.width, 2)
""",
    "with space/pkg/__init__.py": "",
    "with space/pkg/net.py": "from .blocks import make\nfrom beside import width\ndef build(): return make(width)\n",
    "with space/pkg/blocks.py": "from torch import nn\ndef make(width): return nn.Linear(width, 2)\n",
    "with space/beside.py": "width = 7\n",
    "loose/net.py": "from .blocks import make\n",
    "loose/blocks.py": "from torch import nn\ndef make(): return nn.Linear(5, 2)\n",
    "project/helpers.py": "",
    "project/models/net.py": "import helpers\ndef build(): pass\n",
    "types.py": "from torch import nn\ndef build(): return nn.Linear(4, 2)\n",
}


def find_network(text):
    return load(read(text))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder with these files, in which one works."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.usefixtures("folder")
def test_networks_are_found_by_what_a_text_names():
    assert isinstance(find_network("ResNet18")(), ResNet)
    assert find_network("resnet18(num_classes=7, in_channels=1)")().fc.out_features == 7
    assert isinstance(find_network("torchvision:resnet18")(), torchvision.models.ResNet)
    assert find_network("torchvision:resnet18(num_classes=7)")().fc.out_features == 7
    assert isinstance(find_network("their_models:network"), nn.Linear)


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("one.py", 2),
        ("./one.py", 2),
        ("one.py:build", 2),
        ("{folder}/one.py:build(width=3)", 3),
        ("../{name}/one.py:build(4)", 4),
        ("their_models.py:sized(10, channels=5)", 5),
        ("with space/pkg/net.py", 7),
        ("loose/net.py:make", 5),
        ("types.py", 4),
        ("options.py:build", 2),
        ("conditional.py:build", 6),
    ],
)
def test_a_file_is_named_in_every_way_that_people_type(text, width, folder):
    network = find_network(text.format(folder=folder, name=folder.name))()
    assert network.in_features == width


@pytest.mark.usefixtures("folder")
def test_the_only_class_of_a_file_is_its_network():
    assert type(find_network("only_class.py")()).__name__ == "Net"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        # Names.
        ("resnet1", "unknown model 'resnet1'; did you mean"),
        ("their_models", "not one of our models; for the network in your file type their_models.py"),
        ("torchvision:resnet81", "torchvision.models has no resnet81; did you mean"),
        ("no_such_library:f", "no module no_such_library is found here or on PYTHONPATH"),
        ("./one.py:biuld", "one.py has no biuld; did you mean build?"),
        ("on.py", "on.py does not exist; did you mean one.py"),
        ("notebook.ipynb", "notebook.ipynb is not a .py file; put the code"),
        ("no_such.pth", "no_such.pth is not a .py file; put the code"),
        ("one.py::build", "one.py: has one colon too many; type one"),
        ("nowhere/net.py", "the folder nowhere does not exist"),
        ("several.py", "holds small, large; name one of them, as in several.py:small"),
        ("empty.py", "no function in it returns a network"),
        # Arguments.
        ("their_models:takes", "cannot be called without depth, block; write a function without arguments"),
        ("their_models.py:sized", "type 'their_models.py:sized(num_classes=10)', with the quotes"),
        ("blocks.py", "type 'blocks.py:Net(n_blocks=[2, 2, 2, 2], num_classes=10)', with the quotes"),
        ("one.py:build(size=3)", "got an unexpected keyword argument 'size'); build takes width"),
        ("one.py:build(width=print('x'))", "must be literals"),
        ("one.py:build(print('x'))", "must be literals"),
        ("one.py:build(**{})", "must be literals"),
        ("one.py:build(2", "must be literals"),
        ("resnet18(10)", "name the arguments of resnet18, as in 'resnet18(num_classes=10)'"),
        # What the file holds, or does.
        ("their_models:number", "is a int, not a function that builds a network"),
        ("broken_models:build", "cannot be imported (SyntaxError: "),
        ("raising_models:build", "cannot be imported (NameError: name 'wrong' is not defined, at "),
        ("needs.py", "needs.py:2); pip install scikit-learn"),
        ("project/models/net.py", "net.py:1); set PYTHONPATH={folder}/project"),
        ("trains.py", 'trains.py:3): line 5 runs when the file is imported, `train()`; put it under `if __name__ == "'),
    ],
)
def test_a_text_that_names_no_network_is_refused(spec, message, folder):
    with pytest.raises(ValueError, match=re.escape(message.format(folder=folder))):
        find_network(spec)


@pytest.mark.parametrize("text", ["one.py:biuld", "one.py:build(width=x)", "one:biuld", "several.py:smal"])
@pytest.mark.usefixtures("folder")
def test_a_typing_error_is_answered_before_anything_is_imported(text, capsys):
    with pytest.raises(ValueError, match=r"did you mean|literals"):
        find_network(text)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("their_models:fails", r"raised KeyError: 'depth', at .*their_models\.py:7"),
        ("their_models:deep", r"raised RuntimeError: .*, at .*their_models\.py:9"),
        ("their_models:library", r"raised JSONDecodeError: .*, at .*their_models\.py:11"),
        ("their_models:passes", r"missing 1 required .*; give arguments in quotes"),
        ("their_models:gives", "returns a int, not a torch.nn.Module"),
        ("resnet18(nmu_classes=3)", "raised TypeError: .*unexpected keyword argument 'nmu_classes'"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_function_that_builds_no_network_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        find_network(spec)()


def test_a_file_that_runs_for_long_when_imported_is_named_with_its_line(folder, monkeypatch):
    monkeypatch.setattr(imports, "WATCH_SECONDS", 0.02)
    (folder / "slow.py").write_text("import time\ndef train():\n    time.sleep(0.3)\ntrain()\n")
    with pytest.warns(UserWarning, match=r"slow.py:4 has been running .*: `train\(\)`; put it under"):
        imports.import_source("slow.py", folder / "slow.py")


def test_a_library_that_loads_slowly_is_not_the_files_fault(folder, monkeypatch, recwarn):
    monkeypatch.setattr(imports, "WATCH_SECONDS", 0.02)
    (folder / "slow_library.py").write_text("import time\ntime.sleep(0.2)\n")
    (folder / "quick.py").write_text("import slow_library\n")
    imports.import_source("quick.py", folder / "quick.py")
    assert not recwarn.list
