"""What the options of all commands have in common."""

from __future__ import annotations

from typing import Any

import tyro


def unset(metavar: str) -> Any:
    """An option that is unset by default, so that its help shows no default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def check_at_least(least: float, **options: float | None) -> None:
    """Raises ValueError naming the first of these options that is less; None is an option that was not given."""
    for name, value in options.items():
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least:g}, got {value:g}")
