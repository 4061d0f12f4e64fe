"""The machine that a benchmark runs on: what it is, and the most that it can do."""

from __future__ import annotations

import platform
import statistics
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from parity.benchmarks.turns import Call, seconds

SIZES = {"cuda": (8192, 2**31), "cpu": (2048, 2**28)}
"""Rows of the square matrices, and bytes to copy."""

FAST_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
LIBRARIES = ("torch", "torchvision", "torchao", "timm", "onnxruntime", "openvino", "nncf")


def environment(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor()["model name"],
        "flags": [flag for flag in FAST_INSTRUCTIONS if flag in processor()["flags"].split()],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: installed for name in LIBRARIES if (installed := version_of(name))},
    }


def processor() -> dict[str, str]:
    """What Linux says of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {"model name": platform.processor() or platform.machine(), "flags": ""} | facts


def version_of(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def ceilings(device: torch.device) -> dict[str, float]:
    """Operations/s of a matrix product in each precision, and bytes/s of a copy (read and written).

    A 1x1 convolution is a matrix product, too. The faster of both counts: on AMD's processors torch's own product goes
    through MKL, which is less than half as fast in float32 as oneDNN's convolution.
    """
    rows, size = SIZES[device.type]
    calls: dict[str, list[Call]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(2, rows, rows, device=device).to(dtype)
        images = left.reshape(16, rows, rows // 32, 2).contiguous(memory_format=torch.channels_last)
        convolution = partial(torch.conv2d, images, right[:, :, None, None])
        calls[str(dtype).removeprefix("torch.")] = [partial(torch.mm, left, right), convolution]
    if device.type == "cpu":
        calls["int8"] = [int8_product(rows)]

    found = {name: max(2 * rows**3 / median_seconds(call) for call in ways) for name, ways in calls.items()}
    source = torch.randn(size // 4, device=device)
    found["copy"] = 2 * size / median_seconds(partial(torch.empty_like(source).copy_, source))
    return found


def int8_product(rows: int) -> Call:
    """oneDNN's matrix product of 8-bit numbers, whose results are 8-bit numbers, too."""
    left = torch.randint(0, 255, (rows, rows), dtype=torch.uint8)
    right = torch.randint(-127, 127, (rows, rows), dtype=torch.int8)
    weight = torch.ops.onednn.qlinear_prepack(right, [rows, rows])
    steps, zeros = torch.ones(rows), torch.zeros(rows, dtype=torch.int32)
    run = torch.ops.onednn.qlinear_pointwise
    return lambda: run(left, 1.0, 0, weight, steps, zeros, None, 1.0, 0, torch.uint8, "none", [], "")


def median_seconds(call: Call, calls: int = 5) -> float:
    call(), call()
    return statistics.median(seconds(call) for _ in range(calls))
