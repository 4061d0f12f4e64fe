"""Settings as TOML: frozen dataclasses from nested tables, with every key and type checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tomli_w

from resnet_core.foundation.suggestions import did_you_mean


def to_toml(config: Any) -> str:
    """A dataclass as TOML; `read_toml` and `from_mapping` turn it back."""
    return tomli_w.dumps(asdict(config))


def from_mapping(config: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """A configuration from nested plain values. Raises ValueError for unknown or missing keys and bad values."""
    types = get_type_hints(config)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types:
            raise ValueError(f"{where}: unknown key {key!r}; {did_you_mean(key, types)}")
        if not _fits(value, types[key]):
            raise ValueError(f"{where}: {key} should be {_words(types[key])}, got {value!r}")

        arguments[key] = value
        if is_dataclass(types[key]):
            arguments[key] = from_mapping(types[key], value, f"{where}: {key}")
        elif get_origin(types[key]) is tuple:
            arguments[key] = tuple(value)

    missing = [each.name for each in fields(config) if each.name not in arguments]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return config(**arguments)


def _fits(value: Any, annotation: Any) -> bool:
    if is_dataclass(annotation):
        return isinstance(value, Mapping)
    if get_origin(annotation) is tuple:
        return isinstance(value, list | tuple) and all(_fits(each, get_args(annotation)[0]) for each in value)
    if choices := get_args(annotation):
        return value in choices
    return type(value) in ((int, float) if annotation is float else (annotation,))


def _words(annotation: Any) -> str:
    choices = get_args(annotation)
    if get_origin(annotation) is tuple:
        return f"a list, each {_words(choices[0])}"
    if choices:
        return " or ".join(map(repr, choices))
    return "a table" if is_dataclass(annotation) else f"of type {annotation.__name__}"


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, `changes` over `base`."""
    both_tables = {
        key for key, value in changes.items() if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
    }
    return {**base, **changes} | {key: merged(base[key], changes[key]) for key in both_tables}


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
