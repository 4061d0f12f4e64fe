"""What to suggest for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from resnet_core.foundation.errors import shortened


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy of an error about an unknown name: names that end with it, else the nearest, else all known ones."""
    spelled = {each.lower(): each for each in known}
    written = str(name).lower()
    longer = [each for each in spelled if each.endswith(f"_{written}")]
    nearest = [spelled[each] for each in longer or difflib.get_close_matches(written, spelled)]
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {shortened(spelled.values(), most=20)}"
