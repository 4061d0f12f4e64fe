"""JSON files that anyone may have written: each value is checked where it is read, by a rule in words and code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resnet_core.data.transforms import LARGEST_SIZE
from resnet_core.foundation.errors import first_line
from resnet_core.weights.header import WeightsError, unique

FILE_LIMIT = 8 << 20  # bytes; the names and descriptions of ImageNet's 21,841 classes have 2 million
COUNT_LIMIT = 1 << 20  # classes, channels


class Rule(NamedTuple):
    """What a value must be, in words, and whether it is."""

    words: str
    holds: Callable[[Any], bool]


def is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= COUNT_LIMIT


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e6 <= value <= 1e6


def is_list(value: Any, of: Callable[[Any], bool], longest: int) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= longest and all(map(of, value))


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_word(value: Any) -> bool:
    return is_text(value) and value.isprintable() and len(value) <= 200


COUNT = Rule(f"a whole number from 1 to {COUNT_LIMIT}", is_count)
COUNT_OR_0 = Rule(
    f"a whole number from 0 to {COUNT_LIMIT}", lambda value: type(value) is int and 0 <= value <= COUNT_LIMIT
)
COUNTS = Rule("a list of at most 16 whole numbers above 0", lambda value: is_list(value, is_count, 16))
SIZE = Rule(
    f"a whole number of pixels from 1 to {LARGEST_SIZE}", lambda value: is_count(value) and value <= LARGEST_SIZE
)
SHAPE = Rule(
    f"[channels, height, width] of at most {LARGEST_SIZE} pixels",
    lambda value: is_list(value, is_count, 3) and len(value) == 3 and max(value) <= LARGEST_SIZE,
)
NUMBER = Rule("a number", is_number)
SHARE = Rule("a number from 0.01 to 1", lambda value: is_number(value) and 0.01 <= value <= 1)
NUMBERS = Rule("a list of numbers, one for each channel", lambda value: is_list(value, is_number, 16))
DEVIATIONS = Rule(
    "a list of numbers above 0, one for each channel",
    lambda value: is_list(value, lambda each: is_number(each) and each > 0, 16),
)
FLAG = Rule("true or false", lambda value: type(value) is bool)
WORD = Rule("a word of at most 200 characters", is_word)
WORDS = Rule("a list of words of at most 200 characters", lambda value: is_list(value, is_word, 16))
LABELS = Rule(
    f"at most {COUNT_LIMIT} names, as a list or by number",
    lambda value: (
        is_list(value, is_text, COUNT_LIMIT)
        or (isinstance(value, dict) and len(value) <= COUNT_LIMIT and all(map(is_text, value.values())))
    ),
)
OBJECT = Rule("an object", lambda value: isinstance(value, dict))


@dataclass(frozen=True)
class Values:
    """An object of a JSON file; each value is checked when it is asked for."""

    path: Path
    values: Mapping[str, Any]
    within: str = ""
    """The keys that lead to this object, each with a dot behind it."""

    def get(self, key: str, rule: Rule, default: Any) -> Any:
        """The value, or the default where there is none or null. Raises WeightsError where it breaks the rule."""
        value = self.values.get(key)
        if value is None:
            return default
        if not rule.holds(value):
            raise WeightsError(
                f"{self.path} has {self.within}{key} {shown(value)}, which must be {rule.words}; correct the file, or "
                "download it again"
            )
        return value

    def inside(self, key: str) -> Values:
        """The object under a key; an empty one where there is none."""
        return Values(self.path, self.get(key, OBJECT, {}), f"{self.within}{key}.")


def shown(value: Any) -> str:
    """A value on one line, cut where it is long."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises WeightsError for anything else, and for a file beyond FILE_LIMIT."""
    if path.stat().st_size > FILE_LIMIT:
        raise WeightsError(f"{path} has more than {FILE_LIMIT} bytes, so it is not a description; download it again")
    try:
        values = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({first_line(error)}); download it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} must hold a JSON object, got {shown(values)}; download it again")
    return values
