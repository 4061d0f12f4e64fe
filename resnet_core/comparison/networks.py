"""Networks that a text names: "resnet50", "torchvision:resnet50", "timm:resnet18", "my.module:function"."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.models.registry import MODELS, build

LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm.models"}


def find_network(spec: str) -> nn.Module | Callable[[], nn.Module]:
    """The function that builds the network which a text names, or that network itself.

    It imports what is named, and the function calls it: that is the user's own code. Raises ValueError with the remedy
    where that is not to be had, or needs arguments.
    """
    place, _, name = spec.rpartition(":")
    if not place:
        if name not in MODELS and "." in name:
            module = name.removesuffix(".py").replace("/", ".")
            raise ValueError(f"{spec} is no model of ours; name one of yours as module:function, {module}:FUNCTION")
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}; {did_you_mean(name, MODELS)}")
        return lambda: build(name)
    module = LIBRARIES.get(place, place.removesuffix(".py").replace("/", "."))
    try:
        found = getattr(import_module(module), name)
    except AttributeError as error:
        if module not in sys.modules:
            raise ValueError(f"{spec}: {module} cannot be imported ({where(error)})") from error
        known = [each for each, value in vars(sys.modules[module]).items() if callable(value) and each[0] != "_"]
        raise ValueError(f"{spec}: {module} has no {name}; {did_you_mean(name, known)}") from error
    except ModuleNotFoundError as error:
        remedy = f"pip install {place}" if place in LIBRARIES else "go to its folder, or set PYTHONPATH"
        raise ValueError(f"{spec}: {module} cannot be imported ({error}); {remedy}") from error
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise ValueError(f"{spec}: {module} cannot be imported ({where(error)})") from error
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
    """What the function gives. Raises ValueError where it raises, or gives no network."""
    try:
        network = function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{spec} raised {where(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{spec} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def where(error: BaseException) -> str:
    """An error with the file and line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (frame.filename, frame.lineno)
    message = str(error).splitlines()[0] if str(error) else "no message"
    return f"{type(error).__name__}: {message}, at {place[0]}:{place[1]}"
