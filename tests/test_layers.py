"""Who may import whom, room by room and without circles, read from the source; and what `import resnet_core` loads."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import resnet_core
from resnet_core.comparison.networks import names_of

PACKAGE = Path(resnet_core.__file__).parent
PROJECT = PACKAGE.parent

# Each room, or loose file, of the package -> the only ones that it may import.
MAY_IMPORT = {
    "foundation": set(),
    "models": {"foundation"},
    "distributed": {"foundation"},
    "data": {"foundation"},
    "train": {"foundation", "distributed"},
    "builders": {"models", "weights"},  # the last on first use
    "classifier": {"foundation", "models", "builders"},
    "comparison": {"foundation", "models", "inference"},  # the last on first use
    "weights": {"foundation", "models", "data"},
    "inference": {"foundation", "models", "data", "distributed", "train", "weights"},
    "recipes": {"foundation", "models", "data", "distributed", "train", "weights", "classifier.losses"},
    "runs": {"foundation", "recipes", "data", "distributed", "train", "weights", "inference"},
    "exercises": {"foundation", "models", "comparison"},
    "cli": {"foundation", "models", "data", "distributed", "train", "weights", "inference", "comparison", "recipes"}
    | {"runs", "exercises"},
    "__init__": {"foundation", "builders", "models", "classifier", "comparison"}
    | {"data", "exercises", "inference", "recipes", "runs", "train", "weights"},  # these on first use
    "__main__": {"cli"},
}

# Third parties that only these rooms may import.
KEPT_TO = {
    "torchvision": {"data", "weights"},
    "numpy": {"data", "weights", "inference"},
    "PIL": {"data"},
    "pillow_heif": {"data"},
    "simplejpeg": {"data"},
    "rich": {"cli", "train", "weights", "inference"},
    "jinja2": {"runs"},
    "matplotlib": {"runs", "inference"},
    "captum": {"inference"},
    "torchao": {"inference"},
    "tyro": {"cli"},
    "safetensors": {"train", "weights"},
    "tomli_w": {"foundation"},
    "timm": {"weights"},
    "transformers": {"weights"},
    "keras": {"weights"},
    "h5py": {"weights"},
    "huggingface_hub": {"weights"},
    "composer": {"classifier"},
    "torchmetrics": {"classifier"},
    "onnx": {"inference"},
    "onnxruntime": {"inference"},
    "parity": set(),
    "tests": set(),
}

FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = [*FILES, *sorted((PROJECT / "parity").rglob("*.py")), *sorted((PROJECT / "tests").rglob("*.py"))]


def room(path):
    """`resnet_core/train/report.py` -> "train", `resnet_core/builders.py` -> "builders"."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def module(path):
    """`resnet_core/train/__init__.py` -> "resnet_core.train"."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in ALL_FILES}


def imported(path):
    """Full names of all modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def target(name):
    """The room of the package that an import reaches."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "__init__"


def is_allowed(name, places):
    """Whether an import reaches one of the places: rooms, or single modules such as "classifier.losses"."""
    return target(name) in places or any(f"{name}.".startswith(f"resnet_core.{place}.") for place in places)


def reached(name):
    """The project's module that an import of `name` executes: the longest known part of it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def graph(paths, among):
    """module -> modules that it imports, late imports counted."""
    return {
        module(path): {found for name in imported(path) if (found := reached(name)) in among} - {module(path)}
        for path in paths
    }


def test_the_table_has_a_row_for_each_room_and_at_most_16():
    assert {room(path) for path in FILES} == set(MAY_IMPORT)
    assert len(MAY_IMPORT) <= 16


def test_no_module_is_loose():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "builders.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_the_layers(path):
    here = room(path)
    for name in imported(path):
        top = name.split(".")[0]
        if top == "resnet_core":
            assert is_allowed(name, MAY_IMPORT[here] | {here}), f"{path.name}: {here} may not import {name}"
        assert here in KEPT_TO.get(top, {here}), f"{path.name}: {here} may not import {name}"
        # Conversion compares with the source's own model; all other comparisons stand in parity/.
        assert not name.startswith("torchvision.models") or here == "weights", f"{path.name} imports {name}"


def without_circles(imports):
    """The modules in an order in which each follows what it imports. Raises CycleError naming a circle."""
    return list(TopologicalSorter(imports).static_order())


def test_there_is_no_circle_of_imports():
    # What a room's __init__ offers to users is read from outside: inside, modules import each other directly.
    paths = [path for path in ALL_FILES if path != PACKAGE / "__init__.py"]
    assert without_circles(graph(paths, set(MODULES) - {"resnet_core"}))


def test_a_circle_is_found():
    with pytest.raises(CycleError):
        without_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_parity_does_not_know_the_tests():
    for path in (PROJECT / "parity").rglob("*.py"):
        assert not any(name.split(".")[0] == "tests" for name in imported(path)), path


def test_every_name_that_is_imported_from_the_package_exists():
    """Late imports, too, which fail only where somebody has the library that they are for."""
    for path in ALL_FILES:
        for name in imported(path):
            place, _, last = name.rpartition(".")
            if place.startswith("resnet_core") and name not in MODULES and last != "*":
                names = names_of(ast.parse(MODULES[place].read_text()))
                assert names is None or last in names, f"{path} imports {name}"


def test_the_architecture_imports_torch_alone():
    for name in ("resnet", "cifar"):
        top_levels = {name.split(".")[0] for name in imported(PACKAGE / "models" / f"{name}.py")}
        assert top_levels <= {"__future__", "collections", "functools", "typing", "torch", "resnet_core"}


def test_the_trainer_knows_nothing_of_what_it_trains():
    source = (PACKAGE / "train" / "trainer.py").read_text()
    assert not re.findall(r"image|label|resnet(?!_core)", source, flags=re.IGNORECASE)


def test_importing_the_package_loads_neither_torchvision_nor_tools():
    unwanted = ["torchvision", "tyro", "rich", "safetensors", "matplotlib", "tomli_w"]
    unwanted += ["PIL", "composer", "torchmetrics"]
    unwanted += [f"resnet_core.{place}" for place in ("data", "train", "recipes", "cli", "weights", "inference")]
    code = f"import sys, resnet_core; print([name for name in {unwanted} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


def test_the_package_is_typed_for_its_users():
    assert (PACKAGE / "py.typed").exists()


def test_public_names_are_all_there():
    assert set(resnet_core.list_models()) < set(resnet_core.__all__)
    for name in resnet_core.__all__:
        assert hasattr(resnet_core, name), name


def test_rooms_are_there_on_first_use():
    code = (
        "import resnet_core; print(resnet_core.train.Trainer.__name__, 'digits' in resnet_core.recipes.RECIPES, "
        "resnet_core.runs.load_run.__name__)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "Trainer True load_run\n"
