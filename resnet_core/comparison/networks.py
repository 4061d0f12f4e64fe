"""Networks by name, as the command line takes them: "resnet50", "torchvision:resnet50", "./mine.py:net(classes=10)".

A text is read, and its name looked up in the source, before anything is imported: a mistake in typing is answered at
once, and nobody's code runs for it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

from torch import nn

from resnet_core.comparison.imports import import_source, with_place
from resnet_core.foundation.errors import shortened
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import MODELS, build

NOT_CODE = (".ipynb", ".pth", ".pt", ".ckpt", ".safetensors")
LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm.models"}

EXAMPLES = {r"class": "10", r"^(in|im|num).*chan|^chan": "3", r"(layers|blocks|depths|list)$": "[2, 2, 2, 2]"}
"""What the names of builders' parameters match -> a value to show."""


@dataclass(frozen=True, kw_only=True)
class NetworkName:
    """A network as it was typed."""

    text: str
    place: str
    """A file, a module or a library; empty for a model of ours."""
    name: str
    """A function, a class or a network in it; empty for the only one of a file."""
    positional: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    source: Path | None = None
    """The file of the place, where it is known without an import."""


# Before anything is imported.


def read(text: str) -> NetworkName:
    """The text in its parts. Raises ValueError where it cannot be read, or what it names does not exist."""
    head, bracket, rest = text.partition("(")
    place, _, name = head.rpartition(":")
    if not place and (name.endswith(".py") or "/" in name):
        place, name = name, ""
    file = Path(place or name)
    if file.suffix != ".py" and (file.is_file() or file.suffix in NOT_CODE):
        raise ValueError(f"{file} is not a .py file; put the code that builds the network into one")

    positional, keywords = literal_arguments(text, rest) if bracket else ((), {})
    typed = NetworkName(text=text, place=place, name=name, positional=positional, keywords=keywords)
    if not place:
        return check_model(typed)
    if place in LIBRARIES:
        return check_library(typed)
    return check_source(typed)


def literal_arguments(text: str, rest: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The values within the parentheses, of which nothing is evaluated."""
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(call, ast.Call)
        values = tuple(map(ast.literal_eval, call.args))
        keywords = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
        assert "**" not in keywords
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ValueError(
            f"the arguments of {text!r} must be literals, as in 'mine.py:net(num_classes=10, layers=[2, 2, 2, 2])'; "
            "for anything else write a function without arguments that builds the network"
        ) from error
    return values, keywords


def check_model(typed: NetworkName) -> NetworkName:
    """Raises ValueError for a name that is none of ours."""
    name = typed.name
    if name.lower() in MODELS:
        if typed.positional:
            raise ValueError(f"{typed.text}: name the arguments of {name}, as in '{name}(num_classes=10)'")
        return replace(typed, name=name.lower())
    if Path(f"{name}.py").is_file():
        raise ValueError(f"{typed.text} is not one of our models; for the network in your file type {name}.py")
    if "." in name:
        raise ValueError(f"{typed.text} is not one of our models; name yours as module:function, {name}:FUNCTION")
    raise ValueError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")


def check_library(typed: NetworkName) -> NetworkName:
    """Raises ValueError where the library is not installed, or has no function of this name."""
    found = PathFinder.find_spec(typed.place)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"{typed.place} is not installed; pip install {typed.place}")
    files = Path(found.submodule_search_locations[0], "models").glob("*.py")
    known = {
        name
        for file in files
        for name in re.findall(r"^(?:def|class) ([A-Za-z]\w*)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    if typed.name not in known:
        raise ValueError(f"{LIBRARIES[typed.place]} has no {typed.name}; {did_you_mean(typed.name, known)}")
    return replace(typed, place=LIBRARIES[typed.place])


def check_source(typed: NetworkName) -> NetworkName:
    """Raises ValueError where there is no such file or module, where it has a syntax error, or lacks the name."""
    path = typed.place if typed.place.endswith(".py") else typed.place.replace("/", ".").strip(".")
    source = Path(path).expanduser() if path.endswith(".py") else source_of(path)
    if source is None or not source.is_file():
        raise ValueError(why_missing(typed.place))
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{typed.place} cannot be imported ({with_place(error)})") from error

    names = names_of(tree)
    if typed.name and names is not None and typed.name not in names:
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        raise ValueError(f"{typed.place} has no {typed.name}; {did_you_mean(typed.name, defined or names)}")
    return replace(typed, place=path, source=source)


def source_of(module: str) -> Path | None:
    """The file of a dotted module, found without importing its packages."""
    locations: Sequence[str] | None = None
    parts = module.split(".")
    for number in range(len(parts)):
        found = PathFinder.find_spec(".".join(parts[: number + 1]), locations)
        if found is None:
            return None
        locations = found.submodule_search_locations or ()
    return Path(found.origin) if found and found.origin else None


def why_missing(place: str) -> str:
    """Why nothing is found at this place, and what is near it."""
    if place.endswith(":"):
        return f"{place} has one colon too many; type one, as in ./mine.py:net"
    if not place.endswith(".py"):
        return f"no module {place} is found here or on PYTHONPATH; give your file by its path, as in ./mine.py"
    folder, name = Path(place).expanduser().parent, Path(place).name
    if not folder.is_dir():
        return f"the folder {folder} does not exist; check its name"
    files = [file.name for file in folder.glob("*.py")]
    return f"{place} does not exist; {did_you_mean(name, files) if files else f'{folder} holds no .py files'}"


def names_of(tree: ast.Module) -> set[str] | None:
    """The names that a module has when it is imported; None where its source does not show them."""
    names: set[str] = set()
    for node in statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        else:
            names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return None if names & {"*", "__getattr__", "globals", "vars", "exec", "setattr"} else names


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a module that are outside functions and classes."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


# The user's code, run.


def load(typed: NetworkName) -> nn.Module | Callable[[], nn.Module]:
    """The network, or the function that builds it."""
    if not typed.place:
        return partial(built, typed.text, partial(build, typed.name, **typed.keywords))

    module = import_source(typed.place, typed.source)
    name = typed.name or only_builder(typed, module)
    found = getattr(module, name, None)
    if isinstance(found, nn.Module):
        return found
    if found is None and not hasattr(module, name):
        known = [each for each, value in vars(module).items() if callable(value) and each[0] != "_"]
        raise ValueError(f"{typed.place} has no {name}; {did_you_mean(name, known)}")
    if not callable(found):
        raise ValueError(
            f"{typed.text} is a {type(found).__name__}, not a function that builds a network; write one that returns it"
        )
    check_arguments(replace(typed, name=name), found)
    return partial(built, typed.text, partial(found, *typed.positional, **typed.keywords))


def only_builder(typed: NetworkName, module: ModuleType) -> str:
    """The one network of a file: a function that returns something, a network, or a class, in this order.

    Raises ValueError where there are several, or none that needs no arguments.
    """
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    functions = [name for name, value in own.items() if inspect.isfunction(value) and returns_something(value)]
    networks = [name for name, value in vars(module).items() if isinstance(value, nn.Module)]
    classes = [name for name, value in own.items() if inspect.isclass(value) and issubclass(value, nn.Module)]

    builders = [name for name in functions if not missing_arguments(typed, own[name])]
    whole = [name for name in classes if not missing_arguments(typed, own[name])]
    names = builders or networks or whole or (functions or classes)[-1:]  # a network stands below its blocks
    if not names:
        raise ValueError(f"{typed.text}: no function in it returns a network, and no class is a torch.nn.Module")
    if len(names) > 1:
        raise ValueError(f"{typed.text} holds {', '.join(names)}; name one of them, as in {typed.place}:{names[0]}")
    return names[0]


def returns_something(function: Callable[..., Any]) -> bool:
    """Whether its source returns a value; a test or a main function mostly returns none."""
    tree = ast.parse(dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(tree))


def missing_arguments(typed: NetworkName, function: Callable[..., Any]) -> list[str]:
    """The parameters that have no default, and no value in the text."""
    return [
        each.name
        for each in [*inspect.signature(function).parameters.values()][len(typed.positional) :]
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and each.name not in typed.keywords
    ]


def check_arguments(typed: NetworkName, function: Callable[..., Any]) -> None:
    """Raises ValueError, with what to type, where the function cannot be called with the text's arguments."""
    missing = missing_arguments(typed, function)
    values = [next((value for part, value in EXAMPLES.items() if re.search(part, name)), None) for name in missing]
    if missing:
        form = ", ".join(f"{name}={value}" for name, value in zip(missing, values, strict=True))
        remedy = f"type '{typed.place}:{typed.name}({form})', with the quotes"
        if not all(values):
            remedy = "write a function without arguments that builds the network, and name that one"
        raise ValueError(f"{typed.place}:{typed.name} cannot be called without {shortened(missing)}; {remedy}")

    signature = inspect.signature(function)
    try:
        signature.bind(*typed.positional, **typed.keywords)
    except TypeError as error:
        takes = f"{typed.name} takes {', '.join(signature.parameters) or 'no arguments'}"
        raise ValueError(f"{typed.text} cannot be called ({error}); {takes}") from error


def built(text: str, function: Callable[[], Any]) -> nn.Module:
    """The network that the function builds. Raises ValueError if it raises or returns anything else."""
    try:
        network = function()
    except (Exception, SystemExit) as error:
        lacks = isinstance(error, TypeError) and "missing" in str(error)
        remedy = "; give arguments in quotes, as in './mine.py:net(num_classes=10)'" if lacks else ""
        raise ValueError(f"{text} raised {with_place(error)}{remedy}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{text} returns a {type(network).__name__}, not a torch.nn.Module; return the network itself")
    return network
