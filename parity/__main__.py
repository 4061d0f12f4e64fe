"""`python -m parity`: the report, model by rung, and the known-wrong variants with the rung that finds each."""

from __future__ import annotations

import argparse
import sys
import time

import torch
import torchvision

import resnet_core
from parity.mutants import MUTANTS
from parity.rungs import RUNGS, TORCHVISION_MODELS, Builder, Verdict, judge


def main() -> int:
    argparse.ArgumentParser(
        prog="python -m parity", description="Compare all ten models with torchvision's: about 2 minutes on 2 cores."
    ).parse_args()
    began = time.monotonic()
    print(
        f"resnet_core {resnet_core.__version__} against torchvision {torchvision.__version__} "
        f"on torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print("CPU, float32, equal to the bit; each cell: pass or FAIL, and the largest absolute difference found\n")
    widths = {rung: max(len(rung), 12) for rung in RUNGS}
    print(" " * 18 + "  ".join(f"{rung:<{width}}" for rung, width in widths.items()))
    failures = []
    for name in TORCHVISION_MODELS:
        print(f"{name:<18}", end="", flush=True)
        for rung, width in widths.items():
            verdict = judge_model(name, rung)
            print(f"{cell(verdict):<{width}}", end="  ", flush=True)
            if verdict and not verdict.passed:
                failures.append(f"{name}, {rung}: {verdict.first_divergence}")
        print()
    print(f"\n{'known-wrong ResNet-50':<36}{'found by':<22}first divergence")
    for name, build in MUTANTS.items():
        found = first_failure(build)
        print(f"{name:<36}{f'{found[0]:<22}{found[1].first_divergence}' if found else 'NOT FOUND'}", flush=True)
        if not found:
            failures.append(f"known-wrong variant not found: {name}")
    for failure in failures:
        print(f"FAIL  {failure}")
    cells = sum(len(rung.models) for rung in RUNGS.values())
    print(
        f"\n{cells} comparisons, {len(MUTANTS)} known-wrong variants, {len(failures)} failures, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if failures else 0


def judge_model(name: str, rung: str) -> Verdict | None:
    """The verdict on one of torchvision's models, None where the rung is not for it."""
    if name not in RUNGS[rung].models:
        return None
    return judge(RUNGS[rung].compare(lambda: resnet_core.get_model(name), lambda: torchvision.models.get_model(name)))


def first_failure(build: Builder) -> tuple[str, Verdict] | None:
    """The first rung at which a model differs from torchvision's ResNet-50, None where none finds a difference."""
    for name, rung in RUNGS.items():
        verdict = judge(rung.compare(build, torchvision.models.resnet50))
        if not verdict.passed:
            return name, verdict
    return None


def cell(verdict: Verdict | None) -> str:
    return f"{'pass' if verdict.passed else 'FAIL'} {verdict.largest_difference:.3g}" if verdict else "-"


if __name__ == "__main__":
    sys.exit(main())
