"""`python -m parity.benchmarks.speed inference|training|startup|page`: ours beside every peer, in turn in one run.

Each contender is first compared with a run in float64, and refused if it computes something else. A contender that
cannot run here says why and does not end the others. `page` writes the tables of docs/performance.md from the files
docs/results/speed-*.json, or from those that are given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity.benchmarks.contenders import INFERENCE, TRAINING, Case, Contender, chosen, theirs, torch_step
from parity.benchmarks.machine import ceilings, environment
from parity.benchmarks.turns import Call, in_turn, paired_ratio, seconds
from parity.report import table_line
from resnet_core import describe
from resnet_core.foundation.atomic import replace_file
from resnet_core.foundation.errors import first_line
from resnet_core.foundation.precision import FACTOR
from resnet_core.inference.optimize import relative_error

ROUNDS = 7
SECONDS_PER_TURN = 0.4
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
PARTS = (
    "inference",
    "inference-bfloat16",
    "models",
    "training",
    "training-small",
    "startup",
)
RESULTS = [PAGE.parent / "results" / f"speed-{part}.json" for part in PARTS]
BEGIN, END = "<!-- written by parity.benchmarks.speed page -->", "<!-- end of what it writes -->"

# ResNet-50 training at 224 pixels on one GPU, images/s: the closed division of MLPerf Training v4.0.
MLPERF = {"H100": 7157, "H200": 7945}
CONTENDERS = {"inference": INFERENCE, "training": TRAINING}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
# Least share of images whose class is that of the float64 run; in int8 also the largest error, of the largest logit.
AGREEMENT = {"float32": 1.0, "bfloat16": 0.95, "int8": 0.9}
INT8_ERROR = 0.1


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What a contender reached: the median over the rounds, or why it did not run."""

    form: str
    precision: str
    images_per_second: float | None = None
    spread: float | None = None
    """Slowest and fastest round apart, as a share of the median."""
    ratio: float | None = None
    """To the first contender in the same rounds, the median of the pairs."""
    ceiling_share: float | None = None
    """Of the machine's limit that binds it, in that precision."""
    limit: str = ""
    """That limit: operations, or bytes."""
    error: float | None = None
    """The largest difference from float64, relative to the largest logit; in training that of the first loss."""
    agreement: float | None = None
    """Share of images whose class is that of the float64 run."""
    reason: str = ""


def measure(case: Case, contenders: Sequence[Contender], training: bool, rounds: int) -> list[Rate]:
    """The rates of all contenders, which take turns, without their share of the limits."""
    exact = exact_losses(case) if training else exact_logits(case)
    plain = (plain_loss_errors if training else plain_errors)(case, exact)
    check = partial(checked_step if training else checked_inference, exact=exact, plain=plain)
    calls: dict[str, Call] = {}
    repeats: dict[str, int] = {}
    checks: dict[str, tuple[float, float | None]] = {}
    reasons: dict[str, str] = {}
    for contender in contenders:
        try:
            if lacking := contender.lacks(case.images.device.type):
                raise ValueError(lacking)
            call, *checks[contender.name] = check(contender, case)
            seconds(call)
            repeats[contender.name] = max(1, round(SECONDS_PER_TURN / seconds(call)))
            calls[contender.name] = partial(repeated, call, repeats[contender.name])
        except Exception as error:  # whatever a compiler or a driver raises: the others still run
            reasons[contender.name] = first_line(error)
        print(f"{contender.name}: {reasons.get(contender.name, 'ready')}", file=sys.stderr, flush=True)

    times = {name: [each / repeats[name] for each in found] for name, found in in_turn(calls, rounds).items()}
    reference = times.get(contenders[0].name)
    return [rate_of(each, times.get(each.name), reference, len(case.images), checks, reasons) for each in contenders]


def repeated(call: Call, times: int) -> None:
    for _ in range(times):
        call()


def rate_of(
    contender: Contender,
    times: list[float] | None,
    reference: list[float] | None,
    images: int,
    checks: dict[str, Any],
    reasons: dict[str, str],
) -> Rate:
    name, precision = contender.name, contender.precision
    if times is None:
        return Rate(form=name, precision=precision, reason=reasons[name])
    rates = [images / each for each in times]
    error, agreement = checks[name]
    return Rate(
        form=name,
        precision=precision,
        images_per_second=statistics.median(rates),
        spread=(max(rates) - min(rates)) / statistics.median(rates),
        ratio=1 / paired_ratio(times, reference) if reference else None,
        error=error,
        agreement=agreement,
    )


@torch.no_grad()
def exact_logits(case: Case) -> Tensor:
    return theirs(case).double()(case.images.double()).cpu()


@torch.no_grad()
def plain_errors(case: Case, exact: Tensor) -> dict[str, float]:
    """The errors of the network itself in each precision, as torch computes it."""
    errors = {}
    for name in ("float32", "bfloat16"):
        logits = theirs(case).to(DTYPES[name])(case.images.to(DTYPES[name])).cpu()
        errors[name] = max(relative_error(logits, exact), torch.finfo(DTYPES[name]).eps / 2)
    return errors


def checked_inference(
    contender: Contender, case: Case, exact: Tensor, plain: dict[str, float]
) -> tuple[Call, float, float]:
    """The contender's forward on the images, its error and its agreement. Raises ValueError where they are wrong."""
    run = contender.make(case)
    logits = run(case.images).cpu().float()
    error = relative_error(logits, exact)
    agreement = (logits.argmax(1) == exact.argmax(1)).double().mean().item()
    allowed = FACTOR * plain[contender.precision] if contender.precision in plain else INT8_ERROR
    if not error <= allowed or agreement < AGREEMENT[contender.precision]:
        raise ValueError(
            f"refused: its logits differ from float64 by {error:.1e} of the largest, where {allowed:.1e} is allowed, "
            f"and {agreement:.0%} of the classes agree, where {AGREEMENT[contender.precision]:.0%} must"
        )
    return partial(run, case.images), error, agreement


def checked_step(
    contender: Contender, case: Case, exact: tuple[float, float], plain: dict[str, tuple[float, float]]
) -> tuple[Call, float, None]:
    """The contender's training step and its error. Raises ValueError where the first two losses are wrong."""
    step = contender.make(case)
    errors = loss_errors((float(step()), float(step())), exact)
    allowed = [FACTOR * error for error in plain[contender.precision]]
    if not all(error <= most for error, most in zip(errors, allowed, strict=True)):
        raise ValueError(
            f"refused: its first loss differs from float64 by {errors[0]:.1e}, where {allowed[0]:.1e} is allowed, and "
            f"its first update changes the loss by {errors[1]:.1e} more or less, where {allowed[1]:.1e} is allowed"
        )
    return step, errors[0], None


def loss_errors(losses: tuple[float, float], exact: tuple[float, float]) -> tuple[float, float]:
    """Of the first loss and of its fall to the second, relative to float64's."""
    falls = losses[0] - losses[1], exact[0] - exact[1]
    return abs(losses[0] / exact[0] - 1), abs(falls[0] / falls[1] - 1)


def exact_losses(case: Case) -> tuple[float, float]:
    """The losses of the first two steps in float64."""
    step = torch_step(replace(case, images=case.images.double()), lambda _: theirs(case).double())
    return float(step()), float(step())


def plain_loss_errors(case: Case, exact: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Those of the network itself in each precision, as torch computes it; at least what rounding makes of them.

    One memory format may come close to float64 by chance, so the larger error of both counts.
    """
    rounding = torch.finfo(torch.float32).eps * exact[0] / abs(exact[0] - exact[1])  # of the fall of float32 losses
    errors = {}
    for name in ("float32", "bfloat16"):
        least = torch.finfo(DTYPES[name]).eps
        found = [(least, max(least, rounding))]
        for channels_last in (False, True):
            step = torch_step(case, theirs, bf16=name == "bfloat16", channels_last=channels_last)
            found.append(loss_errors((float(step()), float(step())), exact))
        loss, fall = (max(each) for each in zip(*found, strict=True))
        errors[name] = loss, fall
    return errors


def limits(case: Case, training: bool) -> tuple[float, Callable[[int], float]]:
    """Operations of a batch, and its bytes for a number of bytes each value.

    Two operations for each multiply-add, and bytes as if each convolution read its inputs and weights once and wrote
    its outputs once, with everything else fused. Training takes both three times: forward, and two products backward.
    """
    values = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal values
        values += inputs[0].numel() + output.numel()

    network = theirs(case).to("meta")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(case.images.to("meta"))

    times = 3 if training else 1
    values += sum(each.numel() for each in network.parameters())
    multiply_adds = describe(network, case.images.shape[-1]).multiply_adds * len(case.images)
    return 2 * multiply_adds * times, lambda size: values * size * times


def with_share(rate: Rate, case: Case, training: bool, machine: dict[str, float]) -> Rate:
    if rate.images_per_second is None or rate.precision not in machine:
        return rate
    operations, bytes_ = limits(case, training)
    least = {
        "operations": operations / machine[rate.precision],
        "bytes": bytes_(DTYPES[rate.precision].itemsize) / machine["copy"],
    }
    limit = max(least, key=lambda name: least[name])
    share = least[limit] * rate.images_per_second / len(case.images)
    return Rate(**asdict(rate) | {"ceiling_share": share, "limit": limit})


def largest_batch(case: Case) -> int:
    """Images in the largest batch to train with, judged by the memory that one step on the case's images takes."""
    if case.images.device.type == "cpu":
        raise ValueError("the largest batch is what fits into a GPU's memory; give --batch a number on the CPU")
    seconds(torch_step(case, theirs, bf16=True, channels_last=True))
    _, total = torch.cuda.mem_get_info()
    batch = int(0.9 * total / torch.cuda.max_memory_reserved()) * len(case.images)
    torch.cuda.empty_cache()
    return batch


def startup(rounds: int) -> list[dict[str, Any]]:
    """Seconds of new processes that take turns: imports, the command, and the first logits of a ResNet-50."""
    logits = "import torch; {0}.resnet50().eval()(torch.zeros(1, 3, 224, 224))"
    programs = {
        "import torch": ["-c", "import torch"],
        "import resnet_core": ["-c", "import resnet_core"],
        "import torch, torchvision": ["-c", "import torch, torchvision"],
        "resnet-core --help": ["-m", "resnet_core", "--help"],
        "first logits, torchvision": ["-c", "import torchvision; " + logits.format("torchvision.models")],
        "first logits, ours": ["-c", "import resnet_core; " + logits.format("resnet_core")],
    }
    calls: dict[str, Call] = {
        name: partial(subprocess.run, [sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        for name, words in programs.items()
    }
    in_turn(calls, 1)  # files come from memory from now on
    times = in_turn(calls, rounds)
    reference = times["import torch"]
    return [
        {
            "what": name,
            "seconds": statistics.median(found),
            "spread": (max(found) - min(found)) / statistics.median(found),
            "ratio": paired_ratio(found, reference),
        }
        for name, found in times.items()
    ]


HEADER = ("", "images/s", "ms a batch", "spread", "ratio", "of the limit", "error", "top-1 agrees")
STARTUP_HEADER = ("", "seconds", "spread", "ratio")


def row(rate: dict[str, Any], batch: int) -> tuple[str, ...]:
    if rate["images_per_second"] is None:
        return (rate["form"], f"not run: {rate['reason']}", *[""] * (len(HEADER) - 2))
    agreement = "" if rate["agreement"] is None else f"{rate['agreement']:.0%}"
    share = "" if rate["ceiling_share"] is None else f"{rate['ceiling_share']:.0%} of {rate['limit']}"
    return (
        rate["form"],
        f"{rate['images_per_second']:,.1f}",
        f"{1000 * batch / rate['images_per_second']:,.1f}",
        f"{rate['spread']:.1%}",
        f"{rate['ratio']:.2f}" if rate["ratio"] else "",
        share,
        f"{rate['error']:.0e}",
        agreement,
    )


def tables(record: dict[str, Any]) -> str:
    """A JSON file's content as Markdown: the machine, its ceilings, and a table of each case."""
    facts = record["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in facts.items() if name not in ("device", "flags"))
    lines = [f"`{record['command']}`", "", f"{facts['device']} ({' '.join(facts['flags'])}), {versions}."]
    if record["what"] == "startup":
        cells = [
            (each["what"], f"{each['seconds']:.2f}", f"{each['spread']:.0%}", f"{each['ratio']:.2f}")
            for each in record["startup"]
        ]
        return "\n".join([*lines, "", markdown_table(STARTUP_HEADER, cells)])

    machine = record["records"][0]["ceilings"]
    products = ", ".join(f"{machine[name] / 1e12:.3g} in {name}" for name in DTYPES if name in machine)
    lines += [f"Its ceilings: matrix products, TFLOP/s: {products}; copy {machine['copy'] / 1e9:,.0f} GB/s.", ""]
    for case in record["records"]:
        size, batch = case["image_size"], case["batch"]
        lines += [f"**{case['model']}, {record['what']}, batch {batch}, {size} pixels**", ""]
        lines += [markdown_table(HEADER, [row(rate, batch) for rate in case["rates"]]), ""]
    return "\n".join(lines).rstrip()


def markdown_table(header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    return "\n".join([table_line(header), "|---" * len(header) + "|", *map(table_line, lines)])


def write_page(files: Sequence[Path], page: Path = PAGE) -> None:
    """Puts the tables of these JSON files into the page, in place of those that it holds."""
    head, _, rest = page.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    found = "\n\n".join(tables(json.loads(file.read_text())) for file in files if file.exists())
    replace_file(page, f"{head}{BEGIN}\n\n{found}\n\n{END}{tail}".encode())


def mlperf(best: float) -> int | None:
    """The published record of this card, which it prints the best rate's share of."""
    card = torch.cuda.get_device_name()
    published = next((figure for name, figure in MLPERF.items() if name in card), None)
    if published:
        print(f"the best is {best / published:.1%} of MLPerf v4.0's {published:,} images/s on this card")
    return published


def case_of(model: str, batch: int, size: int, device: str, folder: str) -> Case:
    # A pattern of its own in each, because a network finds all images of noise alike.
    generator = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.randn(batch, 3, 3, 3, generator=generator), size=(size, size), mode="bicubic")
    images = (patterns + 0.3 * torch.randn(batch, 3, size, size, generator=generator)).to(device)
    labels = ((torch.arange(batch) + 1) % 10).to(device)  # not those of the head, which knows these images
    return Case(model, images, labels, torch.get_num_threads(), Path(folder))


def run_case(model: str, batch: int, options: argparse.Namespace, machine: dict[str, float]) -> dict[str, Any]:
    training = options.what == "training"
    contenders = chosen(CONTENDERS[options.what], options.precision, options.against, options.without)
    size = options.image_size
    with TemporaryDirectory() as folder:
        batch = batch or largest_batch(case_of(model, 64, size, options.device, folder))
        case = case_of(model, batch, size, options.device, folder)
        rates = [
            with_share(rate, case, training, machine) for rate in measure(case, contenders, training, options.rounds)
        ]
    record = {"model": model, "what": options.what, "batch": batch, "image_size": size, "ceilings": machine}
    record["rates"] = [asdict(rate) for rate in rates]
    if options.device == "cuda" and training:
        record["mlperf_v4"] = mlperf(max(rate.images_per_second or 0 for rate in rates))
    return record


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m parity.benchmarks.speed", description=__doc__)
    parser.add_argument("what", choices=("inference", "training", "startup", "page"))
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE.json",
        help="for page: what --out wrote",
    )
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="NAME")
    parser.add_argument("--batch", nargs="+", default=[16], type=int, help="images of a batch; 0: the most that fit")
    parser.add_argument("--image-size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--threads", type=int, help="of each contender; default: torch's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", nargs="+", default=[], choices=tuple(DTYPES), help="default: all")
    parser.add_argument("--against", nargs="+", default=[], metavar="WORD", help="only contenders with such a word")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help="no contender with such a word")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON, too")
    options = parser.parse_args(arguments)
    if options.what == "page":
        write_page(options.files or RESULTS)
        return 0

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")  # the precision that torch's convolutions have on a GPU
    words = " ".join(sys.argv[1:] if arguments is None else arguments)
    record: dict[str, Any] = {
        "what": options.what,
        "command": f"python -m parity.benchmarks.speed {words.partition(' --out')[0]}",
        "environment": environment(options.device),
    }
    if options.what == "startup":
        record["startup"] = startup(options.rounds)
    else:
        machine = ceilings(torch.device(options.device))
        cases = [(model, batch) for model in options.models for batch in options.batch]
        record["records"] = [run_case(model, batch, options, machine) for model, batch in cases]
    print(tables(record))
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
