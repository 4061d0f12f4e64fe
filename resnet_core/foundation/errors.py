"""Failures that are printed in one line, and how messages and lists of names are shortened."""

from __future__ import annotations

from collections.abc import Iterable


class ReportedError(Exception):
    """A failure that ends a run and that the user did not cause. The command line prints its message alone."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: BaseException) -> str:
    """The last line of an error's message: of several faults that torch lists, one."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def without_remedy(error: BaseException) -> str:
    """A message of this package without what follows its last semicolon, which says what to do."""
    return str(error).rpartition("; ")[0] or str(error)


def printable(text: str) -> str:
    """The text with what a terminal would obey, as an escape sequence in a name, in Python's notation."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shortened(names: Iterable[str], most: int = 3, longest: int = 80) -> str:
    """The first names and the number of the others, on one line whatever the names are; long names are cut."""
    names = list(names)
    cut = longest - 20
    shown = ", ".join(
        name if name.isprintable() and len(name) < longest else f"{name[:cut]!a}..." for name in names[:most]
    )
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
