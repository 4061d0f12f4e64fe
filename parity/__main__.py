"""`python -m parity`: every model by every rung by every oracle, printed, and with --out written down."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

from parity.oracles import ORACLES
from parity.report import Settings, environment, make, print_row, summary, write


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m parity",
        description="Compare our models with every implementation that is installed, rung by rung.",
    )
    parser.add_argument("--quick", action="store_true", help="three models, 64 pixels, no compiled or exported ones")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DIR/parity.md and DIR/parity.json")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the torch networks run")
    parser.add_argument("--oracle", action="append", choices=tuple(ORACLES), help="only this one; may be repeated")
    arguments = parser.parse_args()

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave the option out")
    settings = Settings(quick=arguments.quick, device=arguments.device, oracles=tuple(arguments.oracle or ORACLES))

    warnings.simplefilter("ignore")  # the libraries' own
    began = time.monotonic()
    for fact in environment(settings).items():
        print_row(fact)

    sections = list(make(settings))
    seconds = time.monotonic() - began
    failures = [failure for section in sections for failure in section.failures]
    for failure in failures:
        print(f"FAILED  {failure}")
    print(f"\n{summary(sections)}\n{seconds:.0f} s")

    if arguments.out:
        write(arguments.out, f"python -m parity {' '.join(sys.argv[1:])}", settings, sections, seconds)
        print(f"{arguments.out / 'parity.md'} and parity.json")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
