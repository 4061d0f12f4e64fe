"""Who may import whom (the project's layers), read from the source; and what `import resnet_core` loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_core

PACKAGE = Path(resnet_core.__file__).parent

# Each file or folder of the package -> the only places of the package that it may import.
MAY_IMPORT = {
    "__init__": {"backbone", "cifar", "classifier", "compare", "describe", "models", "resnet"}
    | {"data", "deploy", "recipes", "train", "weights"},  # on first use
    "__main__": {"cli"},
    "resnet": set(),
    "cifar": {"resnet"},
    "backbone": {"resnet"},
    "suggestions": set(),
    "models": {"resnet", "cifar", "backbone", "suggestions", "pretrained"},  # the last on first use
    "pretrained": {"backbone", "models", "suggestions", "weights"},
    "initializers": {"suggestions"},
    "losses": set(),
    "classifier": {"resnet", "models", "losses", "initializers", "composer_classifier"},  # the last on first use
    "composer_classifier": {"classifier"},
    "describe": {"resnet", "models"},
    "alignment": set(),
    "mistakes": {"resnet"},
    "doctor": {"resnet", "backbone", "alignment", "mistakes"},
    "rounding": set(),
    "ladder": {"rounding", "deploy"},  # the last on first use
    "compare": {"alignment", "doctor", "ladder", "mistakes", "models", "rounding", "suggestions"},
    "specs": {"models", "suggestions"},
    "exercises": {"resnet", "compare", "doctor", "suggestions"},
    "durable": set(),
    "lock": set(),
    "data": {"suggestions"},
    "train": {"durable", "suggestions"},
    "weights": {"data", "durable", "suggestions"},
    "weights.sources": {"weights", "resnet"},
    "weights.convert": {"weights", "weights.sources", "resnet", "models", "suggestions", "data"},
    "hub": {"resnet", "backbone", "models", "pretrained", "suggestions", "weights"},
    "predict": {"data"},
    "deploy": {"durable", "rounding", "suggestions"},
    "settings": {"suggestions"},
    "recipes": {"backbone", "data", "models", "pretrained", "settings", "suggestions", "train"},
    "plan": {"data", "pretrained", "recipes", "train"},
    "runs": {"__init__", "data", "durable", "lock", "plan", "pretrained", "recipes", "settings", "train", "weights"},
    "curves": {"durable", "recipes", "runs", "train"},
    "evaluation": {"data", "train", "weights"},
    "commands.errors": {"train"},
    "commands.networks": {"commands.errors", "compare", "describe", "exercises", "models", "specs", "suggestions"},
    "commands.training": {"commands.errors", "curves", "data", "evaluation", "plan", "pretrained", "recipes", "runs"}
    | {"settings", "train"},
    "commands.weights": {"commands.errors", "data", "deploy", "predict", "pretrained", "weights.convert"},
    "commands": set(),
    "cli": {"__init__", "commands.errors", "commands.networks", "commands.training", "commands.weights", "recipes"}
    | {"suggestions", "train"},
}

# Third parties that only these places may import.
KEPT_TO = {
    "torchvision": {"data", "weights.sources"},
    "numpy": {"data", "weights.sources"},
    "PIL": {"data"},
    "rich": {"train", "weights"},
    "matplotlib": {"curves"},
    "tyro": {"cli", "commands.networks", "commands.training", "commands.weights"},
    "safetensors": {"train", "weights"},
    "tomli_w": {"settings"},
    "timm": {"weights.sources"},
    "transformers": {"weights.sources"},
    "keras": {"weights.sources"},
    "h5py": {"weights.sources"},
    "huggingface_hub": {"hub"},
    "composer": {"composer_classifier"},
    "torchmetrics": {"classifier"},
    "onnx": {"deploy"},
    "onnxruntime": {"deploy"},
    "parity": set(),
    "tests": set(),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def place(path):
    """`resnet_core/train/report.py` -> "train", `resnet_core/cli.py` -> "cli"."""
    return innermost(path.relative_to(PACKAGE).with_suffix("").parts)


def innermost(parts):
    """The most exact place of the table that holds a module."""
    exact = ".".join(parts[:2])
    return exact if exact in MAY_IMPORT else parts[0]


def imported(path):
    """Full names of all modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def target(name):
    """The place of the package that an import reaches; attributes of the package itself count as "__init__"."""
    parts = name.split(".")
    inside = innermost(parts[1:]) if len(parts) > 1 else "__init__"
    return inside if inside in MAY_IMPORT else "__init__"


def test_the_rules_cover_the_package():
    assert {place(path) for path in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_the_layers(path):
    here = place(path)
    for name in imported(path):
        top = name.split(".")[0]
        if top == "resnet_core":
            assert target(name) in MAY_IMPORT[here] | {here}, f"{path.name}: {here} may not import {name}"
        assert here in KEPT_TO.get(top, {here}), f"{path.name}: {here} may not import {name}"
        # Conversion compares with the source's own model; all other comparisons stand in parity/.
        assert not name.startswith("torchvision.models") or here == "weights.sources", f"{path.name} imports {name}"


def test_the_architecture_imports_torch_alone():
    for name in ("resnet", "cifar"):
        top_levels = {module.split(".")[0] for module in imported(PACKAGE / f"{name}.py")}
        assert top_levels <= {"__future__", "collections", "functools", "typing", "torch", "resnet_core"}


def test_the_trainer_knows_nothing_of_what_it_trains():
    source = (PACKAGE / "train" / "trainer.py").read_text()
    assert not re.findall(r"image|label|resnet(?!_core)", source, flags=re.IGNORECASE)
    assert len(source.splitlines()) <= 400


def test_importing_the_package_loads_neither_torchvision_nor_tools():
    unwanted = ["torchvision", "tyro", "rich", "safetensors", "matplotlib", "tomli_w"]
    unwanted += ["PIL", "composer", "torchmetrics"]
    unwanted += [f"resnet_core.{place}" for place in ("data", "train", "recipes", "cli", "weights", "predict")]
    code = f"import sys, resnet_core; print([name for name in {unwanted} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


def test_the_package_is_typed_for_its_users():
    assert (PACKAGE / "py.typed").exists()


def test_public_names_are_all_there():
    assert set(resnet_core.list_models()) < set(resnet_core.__all__)
    for name in resnet_core.__all__:
        assert hasattr(resnet_core, name), name


def test_subpackages_are_there_on_first_use():
    code = "import resnet_core; print(resnet_core.train.Trainer.__name__, 'digits' in resnet_core.recipes.RECIPES)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "Trainer True\n"
