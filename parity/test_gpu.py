"""`make gpu` itself, tried at tiny sizes on the CPU: its parts run, and one that fails or hangs ends nothing else."""

import json
from pathlib import Path

import pytest

from parity import gpu
from parity.benchmarks import speed


def test_the_limits_of_the_parts_add_up_to_8_minutes():
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 8 * 60


def contenders_of(part, monkeypatch):
    """Names of the contenders that a part of `speed` times on a GPU."""
    asked = []

    def run_case(model, batch, options, machine):
        what = speed.CONTENDERS[options.what]
        asked.extend(speed.chosen(what, options.precision, options.against, options.without))
        return {"image_size": 224, "batch": batch, "model": model, "ceilings": {"copy": 1.0}, "rates": []}

    monkeypatch.setattr(speed, "run_case", run_case)
    monkeypatch.setattr(speed, "ceilings", lambda device: {"copy": 1.0})
    monkeypatch.setattr(speed, "environment", lambda device: {"device": "a card", "flags": []})
    _, _, *words = gpu.PARTS[part].command("cuda", False, Path())
    assert speed.main(words[: words.index("--out")]) == 0
    return [each.name for each in asked if not each.lacks("cuda")]


def test_the_parts_time_eager_each_part_and_all_together(monkeypatch):
    eager = contenders_of("training", monkeypatch)
    compiled = contenders_of("training-compiled", monkeypatch)
    assert eager[0] == compiled[0] == "torchvision, eager"
    assert {"ours, eager", "ours, bf16", "ours, channels_last", "ours, CUDA graph"} <= set(eager)
    assert {"ours, compiled", "torchvision, bf16 channels_last compiled", "ours, all of these"} <= set(compiled)
    assert set(eager[1:]).isdisjoint(compiled)
    assert contenders_of("largest", monkeypatch) == ["torchvision, eager", "ours, all of these"]
    assert "torchvision, bf16 compiled" in contenders_of("inference-compiled", monkeypatch)
    assert "torchvision, bf16 channels_last" in contenders_of("inference", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "inference", "training-compiled", "inference-compiled"])
def test_a_part_runs_at_tiny_size_on_the_cpu(name, tmp_path, monkeypatch):
    if name.endswith("-compiled"):  # which takes minutes; other tests compile forwards and steps
        monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    outcome = gpu.run_part(name, gpu.PARTS[name], "cpu", True, tmp_path)
    assert outcome.passed, outcome.summary
    rates = {rate["form"]: rate for rate in outcome.record["rates"]}
    assert rates["torchvision, eager"]["ratio"] == 1
    assert "images/s" in outcome.summary


def test_a_part_that_fails_or_hangs_ends_nothing_else(tmp_path, monkeypatch, capsys):
    def part(code, seconds=30.0):
        return gpu.Part(seconds=seconds, command=lambda *_: ["-c", code], summary=gpu.last_printed)

    parts = {
        "crash": part("import os; os.abort()"),
        "error": part("raise SystemExit('no memory left')"),
        "hang": part("import time; time.sleep(60)", seconds=0.05),
        "right": part("print('done')"),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--out", str(out)]) == 1
    record = json.loads(out.read_text())
    assert {each["part"]: each["passed"] for each in record["parts"]} == {name: name == "right" for name in parts}
    printed = capsys.readouterr().out
    assert "no memory left" in printed
    assert "not done in 0.5 s" in printed


def test_a_machine_without_a_gpu_is_refused_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "torch finds no NVIDIA GPU here" in capsys.readouterr().err


def test_the_digits_part_trains_and_reports_its_accuracy(tmp_path):
    outcome = gpu.run_part("digits", gpu.PARTS["digits"], "cpu", True, tmp_path)
    assert outcome.passed, outcome.summary
    assert outcome.record["count"] == 360
    assert "top-1" in outcome.summary
