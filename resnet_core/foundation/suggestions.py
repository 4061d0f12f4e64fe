"""What to suggest for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from resnet_core.foundation.errors import shortened

Given = ParamSpec("Given")
Result = TypeVar("Result")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy of an error about an unknown name: names that end with it, else the nearest, else all known ones."""
    spelled = {each.lower(): each for each in known}
    written = str(name).lower()
    longer = [each for each in spelled if each.endswith(f"_{written}")]
    nearest = [spelled[each] for each in longer or difflib.get_close_matches(written, spelled)]
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {shortened(spelled.values(), most=20)}"


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError for a keyword argument that the function does not have, with the nearest that it has."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {did_you_mean(name, known)}")


def with_checked_keywords(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, which suggests the nearest of its arguments where the caller misspells one."""
    known = signature(function).parameters

    @wraps(function)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        check_keywords(function.__name__, kwargs, known)
        return function(*args, **kwargs)

    return checked
