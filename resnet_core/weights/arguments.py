"""Keyword arguments of `load_model` as they are typed: in Python, and on the command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def assigned(values: Mapping[str, Any]) -> list[str]:
    """Keyword arguments, as they are to be typed."""
    return [f"{name}={value!r}" for name, value in values.items()]


def as_options(values: Mapping[str, Any]) -> list[str]:
    """Keyword arguments of `load_model` as words of the command line."""
    words: list[str] = []
    for name, value in values.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        for each in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            words += [option, quoted(each)]
    return words


def quoted(word: str) -> str:
    """A word of the command line; one that a terminal would obey, as an escape sequence, in the shell's `$'...'`."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + word.encode("unicode_escape").decode().replace("'", r"\'") + "'"
