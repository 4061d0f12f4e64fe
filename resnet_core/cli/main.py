"""The command line: `resnet-core` and `python -m resnet_core`. Only the command that was typed is imported."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from resnet_core.cli.errors import as_exit_status
from resnet_core.cli.parse import parse
from resnet_core.distributed.launcher import exit_rank
from resnet_core.distributed.rendezvous import is_main_process
from resnet_core.distributed.signals import INTERRUPTED, NOTHING_TO_SAVE, STOPPED
from resnet_core.foundation.errors import printable
from resnet_core.foundation.suggestions import did_you_mean
from resnet_core.foundation.version import __version__

# A command's name -> the module of this folder that has it, and its class.
COMMANDS = {
    "models": ("networks", "Models"),
    "describe": ("networks", "Describe"),
    "recipes": ("training", "Recipes"),
    "show": ("training", "Show"),
    "train": ("training", "Train"),
    "evaluate": ("inference", "Evaluate"),
    "plot": ("training", "Plot"),
    "report": ("training", "WriteReport"),
    "data check": ("data", "DataCheck"),
    "data resize": ("data", "DataResize"),
    "compare": ("comparison", "Compare"),
    "exercise": ("exercises", "Exercise"),
    "grade": ("exercises", "Grade"),
    "inspect": ("weights", "Inspect"),
    "predict": ("images", "Predict"),
    "embed": ("images", "Embed"),
    "explain": ("images", "Explain"),
    "convert": ("weights", "Convert"),
    "quantize": ("inference", "Quantize"),
    "export": ("inference", "Export"),
}


def command(name: str) -> type:
    """The class of that command."""
    module, class_name = COMMANDS[name]
    found: type = getattr(import_module(f"resnet_core.cli.{module}"), class_name)
    return found


@as_exit_status
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    # What the program says of itself. `data` is the first word of several commands.
    if words[0:1] == ["help"]:
        words = [*words[1:], "--help"]
    group = [name for name in COMMANDS if words and name.startswith(f"{words[0]} ")]
    if not words or words[0] in ("-h", "--help") or (group and words[1:] in ([], ["-h"], ["--help"])):
        print(f"usage: resnet-core {words[0] + ' ' if group else ''}COMMAND ...\n")
        for name in group or COMMANDS:
            print(f"  {name:<13}{(command(name).__doc__ or '').splitlines()[0]}")
        print("\n`resnet-core COMMAND --help` explains a command.")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0

    # A command.
    call: Callable[[], int | None]
    if words[0] == "exercises":  # as `models` and `recipes`, which list what there is
        words[0] = "exercise"
    size = 2 if " ".join(words[:2]) in COMMANDS else 1
    name, rest = " ".join(words[:size]), words[size:]
    if name not in COMMANDS:
        typed = " ".join(words[:2]) if group else name
        known = group or [*COMMANDS, "--version", "--help"]
        raise ValueError(f"unknown command {typed!r}; {did_you_mean(typed, known)}")
    if name == "train":
        from resnet_core.cli.parse_train import parse_train, print_usage

        call = print_usage if rest in (["-h"], ["--help"]) else parse_train(rest)
    else:
        call = parse(command(name), rest, prog=f"resnet-core {name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"resnet_core\.")
        warnings.showwarning = show_warning
        return call() or 0


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """In one line, without the place in the source that Python adds."""
    print(f"resnet-core: {printable(str(message))}", file=sys.stderr)


def run_program() -> NoReturn:
    """The program `resnet-core`: exits with the status of `main`, or that of an interruption."""
    training = sys.argv[1:2] == ["train"]
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what a terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    # SIGTERM raises, so that files that are half written are removed.
    handler = signal.default_int_handler if training else lambda number, frame: sys.exit(128 + number)
    signal.signal(signal.SIGTERM, handler)
    try:
        status = main()
    except KeyboardInterrupt:
        status = STOPPED if training else INTERRUPTED
        if is_main_process():
            print(f"resnet-core: {NOTHING_TO_SAVE if training else 'interrupted'}", file=sys.stderr)

    if training or "RANK" in os.environ:
        exit_rank(status)
    sys.exit(status)
