"""`make gpu` itself, tried at tiny sizes on the CPU: its parts run, and one that fails or hangs ends nothing else."""

import json

import pytest

from parity import gpu
from parity.benchmarks import throughput


def test_the_limits_of_the_parts_add_up_to_8_minutes():
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 8 * 60


@pytest.mark.parametrize("what", ["training", "inference"])
def test_each_form_is_timed_or_says_why_not(what, tmp_path, capsys):
    out = tmp_path / "rates.json"
    options = ["--batch", "2", "--image-size", "32", "--model", "resnet18", "--rounds", "1", "--forms", "eager"]
    assert throughput.main([what, *options, "--out", str(out)]) == 0
    rates = {rate["form"]: rate for rate in json.loads(out.read_text())["rates"]}
    assert rates["torchvision"]["ratio"] == 1
    assert rates["ours, bf16 channels_last"]["images_per_second"] > 0
    assert rates["ours, CUDA graph"]["reason"] == "CUDA graphs need an NVIDIA GPU"
    assert "not run: CUDA graphs need an NVIDIA GPU" in capsys.readouterr().out


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
