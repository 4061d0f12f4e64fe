"""`python -m parity.benchmarks.saving`: how long a save stops training, in the background beside in the foreground.

ResNet-50 with SGD's momentum, 205 MB. Each round saves once in each way, in turn, and then waits for the background's
write, which is not timed. The ratio of the medians is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import resnet_core
from resnet_core.train.checkpoint import CheckpointWriter, save_checkpoint

ROUNDS = 9
ALLOWED = 0.10


def main() -> int:
    argparse.ArgumentParser(prog="python -m parity.benchmarks.saving", description=__doc__).parse_args()
    model = resnet_core.resnet50()
    tensors = {
        "model": model.state_dict(),
        "optimizer": {f"{name}/momentum_buffer": torch.randn_like(value) for name, value in model.named_parameters()},
    }
    size = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())

    blocking: list[float] = []
    stalls: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder, "background"), keep=1)
        for step in range(ROUNDS + 1):  # the first round allocates the memory for the copies and is not counted
            began = time.perf_counter()
            save_checkpoint(Path(folder, "foreground"), step, tensors, {}, keep=1)
            blocking.append(time.perf_counter() - began)

            began = time.perf_counter()
            writer.save(step, tensors, {})
            stalls.append(time.perf_counter() - began)
            writer.wait()

    foreground = statistics.median(blocking[1:])
    background = statistics.median(stalls[1:])
    ratio = background / foreground
    print(
        f"{size / 1e6:.0f} MB: a save in the foreground takes {foreground * 1e3:.0f} ms, in the background it stops "
        f"training for {background * 1e3:.0f} ms: {ratio:.3f} of that ({ALLOWED:.2f} allowed; medians of {ROUNDS})"
    )
    print(f"the first one in the background, which allocates its memory: {stalls[0] * 1e3:.0f} ms")
    return 0 if ratio <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
