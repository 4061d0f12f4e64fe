"""What to propose where a name is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known names, or all of them."""
    spelled = {each.lower(): each for each in known}
    nearest = [spelled[each] for each in difflib.get_close_matches(str(name).lower(), spelled, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(spelled.values())}"
