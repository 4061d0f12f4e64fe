"""From what was typed to a command with its options, and from tyro's errors to a line that says what to do."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any
from unittest.mock import patch

import docstring_parser
import tyro

from resnet_core.distributed.rendezvous import is_main_process


def parse(
    command: type,
    words: Sequence[str],
    *,
    prog: str,
    described: Callable[[str], str] = str,
    also_known: Callable[[str], list[str]] = lambda option: [],
    **options: Any,
) -> Any:
    """The command with its options. Raises ValueError, in one line, for a mistake in them; rank 0 prints their help.

    `described` changes the options' descriptions; `also_known` gives the options that an unknown one may stand for.
    """

    def docstring_of(command: Any, read: Callable[[Any], Any] = docstring_parser.parse_from_object) -> Any:
        """The docstring that the help is made of, without the line breaks of the source."""
        docstring = read(command)
        for option in docstring.params:
            option.description = option.description and described(" ".join(option.description.split()))
        return docstring

    errors = io.StringIO()
    try:
        with (
            redirect_stderr(errors),
            nullcontext() if is_main_process() else redirect_stdout(io.StringIO()),
            patch("docstring_parser.parse_from_object", docstring_of),
            patch.object(sys.stdout, "write", partial(without_empty_defaults, sys.stdout.write)),
        ):
            return tyro.cli(command, args=words, prog=prog, config=(tyro.conf.FlagCreatePairsOff,), **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        mistake = in_one_line(errors.getvalue(), also_known)
        raise ValueError(
            f"{mistake}{'' if mistake.endswith('?') else ';'} `{prog} --help` explains all options"
        ) from None


def without_empty_defaults(write: Callable[[str], int], text: str) -> int:
    """Writes help in which options that are empty by default show no default; blanks keep its frame straight."""
    return write(re.sub(r"\(default: (?:'')?\)", lambda shown: " " * len(shown[0]), text))


# What Python and tyro say of a wrong value -> what a user can use.
IN_PLAIN_WORDS = {
    r"^Error parsing (\S+): could not convert string to float: (.*)$": r"\1 must be a number, got \2",
    r"^Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)$": r"\1 must be a whole number, got \2",
    r"^Error parsing (\S+): no type matching .*INT could be instantiated from \['(.*?)'\].*": (
        r"\1 must be a whole number, got '\2'"
    ),
    r"^Error parsing (?!--)\S+: ": "",  # a sentence of this package follows
    r"^Missing value for argument '(\S+)'. Expected 1 values": r"\1 needs a value",
    r"^Unrecognized options: (?!-)(\S+).*": r"'\1' is one argument too many",
}


def in_one_line(framed: str, also_known: Callable[[str], list[str]]) -> str:
    """The mistake and the nearest options, from the frame that tyro prints: title, mistake, suggestions, help."""
    text = re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯]", "", framed)  # colours, sides and corners
    blocks = [block.strip() for block in re.split(r"[─-]{3,}", text)]
    if len(blocks) < 2:  # a frame of another form
        return " ".join(framed.split())

    mistake = re.sub(r"\[([A-Z]+)\]", r"\1", " ".join(blocks[1].split()).removesuffix("."))
    for python, plain in IN_PLAIN_WORDS.items():
        mistake = re.sub(python, plain, mistake)
    if missing := re.fullmatch(r"Missing from resnet-core ([\w ]+): (.*)\(required\)", mistake):
        command, arguments = missing.groups()
        mistake = f"{command} needs {' and '.join(part.split()[0] for part in arguments.split('(required)'))}"
    suggestions = "".join(block for block in blocks[2:] if block.startswith("Perhaps you meant"))
    nearest = re.findall(r"^ *(--[\w.-]+)", suggestions, flags=re.MULTILINE)
    unknown = re.match(r"Unrecognized options: (--[\w.-]+)", mistake)
    if unknown:
        nearest[:0] = also_known(unknown[1].replace("_", "-"))
    return f"{mistake}; did you mean {' or '.join(nearest[:3])}?" if nearest else mistake
