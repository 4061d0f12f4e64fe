"""Networks by name, as the command line takes them: "resnet50", "torchvision:resnet50", "my.module:function"."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from resnet_core.foundation.errors import first_line
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import MODELS, build

LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm.models"}


def find_network(spec: str) -> nn.Module | Callable[[], nn.Module]:
    """The function that builds the named network, or the network itself where a module holds one.

    Importing the module and calling the function run the user's own code. Raises ValueError with the remedy where the
    name leads to nothing, or to a function that needs arguments.
    """
    # One of this package.
    place, _, name = spec.rpartition(":")
    if not place:
        if name not in MODELS and "." in name:
            module = name.removesuffix(".py").replace("/", ".")
            raise ValueError(f"{spec} is not one of our models; name yours as module:function, {module}:FUNCTION")
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
        return lambda: build(name)

    # One of a library, or the user's.
    module = LIBRARIES.get(place, place.removesuffix(".py").replace("/", "."))
    try:
        found = getattr(import_module(module), name)
    except AttributeError as error:
        if module not in sys.modules:  # the import raised it, not getattr
            raise ValueError(f"{spec}: {module} cannot be imported ({with_place(error)})") from error
        known = [each for each, value in vars(sys.modules[module]).items() if callable(value) and each[0] != "_"]
        raise ValueError(f"{spec}: {module} has no {name}; {did_you_mean(name, known)}") from error
    except ModuleNotFoundError as error:
        remedy = f"pip install {place}" if place in LIBRARIES else "go to its folder, or set PYTHONPATH"
        raise ValueError(f"{spec}: {module} cannot be imported ({error}); {remedy}") from error
    except (Exception, SystemExit) as error:  # anything that the user's file raises
        raise ValueError(f"{spec}: {module} cannot be imported ({with_place(error)})") from error

    # A function must be callable as it is.
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ValueError(f"{spec} is a {type(found).__name__}, not a function that builds a network")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise ValueError(f"{spec} cannot be called without arguments ({error}); name a function that can") from error
    return lambda: built(spec, found)


def built(spec: str, function: Callable[[], Any]) -> nn.Module:
    """The network that the function builds. Raises ValueError if it raises or returns anything else."""
    try:
        network = function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{spec} raised {with_place(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{spec} returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def with_place(error: BaseException) -> str:
    """An error's type and first line, and the line that raised it outside torch and outside this folder."""
    text = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):
        return f"{text}, at {error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if "torch" not in file.parts and file.parent != Path(__file__).parent:
            return f"{text}, at {file}:{frame.lineno}"
    return text
