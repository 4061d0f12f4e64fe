"""`python -m parity.benchmarks.memory`: the most memory that comparing two ResNet-152 takes, 2 images of 224 pixels."""

from __future__ import annotations

import argparse
import resource
import sys

import torchvision

import resnet_core
from parity.drop_in import images

NAME, SIZE, LIMIT = "resnet152", 224, 3.0  # GiB, of the whole process with torch


def peak() -> float:
    """The most memory that this process has held, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m parity.benchmarks.memory", description=__doc__).parse_args(arguments)
    before = peak()
    ours, theirs = getattr(resnet_core, NAME), getattr(torchvision.models, NAME)
    result = resnet_core.compare(ours, theirs, images(size=SIZE))
    print(f"{NAME}, 2 images of {SIZE} pixels: {len(result.rungs)} rungs, {'equal' if result else 'DIFFERENT'}")
    print(f"peak {peak():.2f} GiB, of which torch and the imports {before:.2f}; at most {LIMIT:.0f}")
    return 0 if result and peak() <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
