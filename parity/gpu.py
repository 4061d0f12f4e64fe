"""`python -m parity.gpu`: everything that needs an NVIDIA GPU, proven and timed in at most 8 minutes.

Each part runs in a process of its own with a time limit, so that one that crashes or hangs takes nothing else with it.
A table comes last, and a JSON file holds the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision

import resnet_core

TINY = ("--batch", "4", "--image-size", "32", "--models", "resnet18", "--rounds", "1")
COMPILED = ("compiled", "all of these")
CPU_PATIENCE = 10  # the limits are those of a GPU
SHORT = ("--train.epochs", "3", "--schedule.warmup-epochs", "1")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A program, how long it may take, and what its last words mean."""

    seconds: float
    command: Callable[[str, bool, Path], list[str]]
    """Device, whether at tiny size, folder for results -> the arguments of Python."""
    summary: Callable[[str, Path], tuple[str, Any]]
    """What it printed, its folder -> one line, and what the JSON file keeps."""


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """How a part ended."""

    part: str
    passed: bool
    seconds: float
    summary: str
    record: Any = None


def last_printed(printed: str, folder: Path) -> tuple[str, Any]:
    lines = printed.strip().splitlines()
    return (lines[-1] if lines else "it printed nothing"), None


def comparisons(printed: str, folder: Path) -> tuple[str, Any]:
    found = re.findall(r"^\d+ comparisons: .*$", printed, flags=re.MULTILINE)
    return (found[-1] if found else last_printed(printed, folder)[0]), None


def run_result(printed: str, folder: Path) -> tuple[str, Any]:
    result = json.loads((folder / "run" / "result.json").read_text())
    return f"top-1 {result['top1']:.2%}, {result['images_per_second']:,.0f} images/s", result


def rates(printed: str, folder: Path) -> tuple[str, Any]:
    (record,) = json.loads((folder / "rates.json").read_text())["records"]
    known = [rate for rate in record["rates"] if rate["images_per_second"]]
    if not known:
        return f"not run: {record['rates'][0]['reason']}", record
    best = max(known, key=lambda rate: rate["images_per_second"])
    ratio = f", {best['ratio']:.2f} times torchvision's" if best["ratio"] else ""
    return f"{best['images_per_second']:,.0f} images/s ({best['form']}{ratio})", record


def speed(what: str, *words: str, batch: int = 256, seconds: float) -> Part:
    return Part(
        seconds=seconds,
        command=lambda device, tiny, folder: [
            *("-m", "parity.benchmarks.speed", what, "--device", device, *words),
            *(TINY if tiny else ("--batch", str(batch))),
            *("--out", str(folder / "rates.json")),
        ],
        summary=rates,
    )


# Their limits add up to 8 minutes.
PARTS: dict[str, Part] = {
    "proofs": Part(
        seconds=120,
        command=lambda device, tiny, folder: ["-m", "parity", "--quick", "--device", device],
        summary=comparisons,
    ),
    "tests": Part(
        seconds=45,
        command=lambda device, tiny, folder: [
            *("-m", "pytest", "-n", "0", "-q", "--tb=short", "--show-capture=no"),
            *("-m", "gpu", "tests/gpu"),
        ],
        summary=last_printed,
    ),
    "digits": Part(
        seconds=25,
        command=lambda device, tiny, folder: [
            *("-m", "resnet_core", "train", "digits", "--run.device", device, "--out", str(folder / "run")),
            *(SHORT if tiny else ()),
        ],
        summary=run_result,
    ),
    "training": speed("training", "--without", "fast", *COMPILED, seconds=40),
    "training-compiled": speed("training", "--against", *COMPILED, seconds=125),
    "inference": speed("inference", "--without", *COMPILED, seconds=30),
    "inference-compiled": speed("inference", "--against", *COMPILED, seconds=45),
    "largest": speed("training", "--against", "all of these", batch=0, seconds=50),
}


def run_part(name: str, part: Part, device: str, tiny: bool, folder: Path) -> PartResult:
    """Runs a part up to its end, its failure or its time limit."""
    began = time.monotonic()
    limit = part.seconds * (1 if device == "cuda" else CPU_PATIENCE)
    try:
        ended = subprocess.run(
            [sys.executable, *part.command(device, tiny, folder)],
            capture_output=True,
            text=True,
            timeout=limit,
        )

        seconds = time.monotonic() - began
        if ended.returncode:
            print_end(ended.stdout + ended.stderr)
            said = (ended.stderr.strip() or ended.stdout.strip() or "nothing").splitlines()[-1]
            return PartResult(part=name, passed=False, seconds=seconds, summary=f"status {ended.returncode}: {said}")
        summary, record = part.summary(ended.stdout, folder)
    except subprocess.TimeoutExpired as late:
        print_end((late.stdout or b"").decode() + (late.stderr or b"").decode())
        return PartResult(part=name, passed=False, seconds=limit, summary=f"not done in {limit:g} s")
    return PartResult(part=name, passed=True, seconds=seconds, summary=summary, record=record)


def print_end(printed: str) -> None:
    print(*printed.splitlines()[-40:], sep="\n", flush=True)


def environment(device: str) -> dict[str, str]:
    """What the figures depend on."""
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {
        "card": card,
        "driver": driver() if device == "cuda" else "none",
        "cuda": torch.version.cuda or "none",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "resnet_core": resnet_core.__version__,
    }


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to try the program itself")
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help="only this part; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: docs/results/gpu-CARD.json")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU here; `--device cpu --tiny` tries the program itself")

    facts = environment(options.device)
    card = re.sub(r"[^a-z0-9]+", "-", facts["card"].lower()).strip("-")
    out = options.out or Path("docs") / "results" / f"gpu-{card}.json"
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)

    out.parent.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for name in options.only or PARTS:
        with TemporaryDirectory() as folder:
            outcome = run_part(name, PARTS[name], options.device, options.tiny, Path(folder))
        outcomes.append(outcome)
        print(f"{name:<18} {outcome.seconds:6.0f} s", flush=True)
        record = {"environment": facts, "parts": [asdict(outcome) for outcome in outcomes]}
        out.write_text(json.dumps(record, indent=2) + "\n")  # now, should a later part take the machine down

    print(f"\n{'part':<19}{'':<8}{'seconds':>8}")
    for outcome in outcomes:
        word = "passed" if outcome.passed else "FAILED"
        print(f"{outcome.part:<19}{word:<8}{outcome.seconds:>8.0f}  {outcome.summary}")
    print(out)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
