"""`python -m parity.benchmarks.speed`: contenders are checked before they are timed, and what it writes is whole."""

import json
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from parity.benchmarks import speed
from parity.benchmarks.contenders import INFERENCE, TRAINING, Contender, theirs, torch_inference, torch_step
from parity.benchmarks.profile import shares

TINY = ["--models", "cifar_resnet20", "--batch", "4", "--image-size", "32", "--rounds", "1", "--without", "compiled"]


def measured(what, tmp_path, *words):
    out = tmp_path / "speed.json"
    assert speed.main([what, *TINY, *words, "--out", str(out)]) == 0
    (record,) = json.loads(out.read_text())["records"]
    return record, {rate["form"]: rate for rate in record["rates"]}


@pytest.fixture
def case(tmp_path):
    return speed.case_of("cifar_resnet20", 4, 32, "cpu", tmp_path)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(speed, "SECONDS_PER_TURN", 0)
    monkeypatch.setattr("parity.benchmarks.contenders.RUN_STEPS", 1)  # so that nothing is compiled
    monkeypatch.setattr("parity.benchmarks.machine.SIZES", {"cpu": (64, 2**16)})


def test_inference_is_checked_and_timed_in_each_precision_or_says_why_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    record, rates = measured("inference", tmp_path)
    assert rates["torchvision, eager"]["ratio"] == 1
    for precision in ("float32", "bfloat16", "int8"):
        name = {"float32": "ours, optimized", "bfloat16": "ours, bf16 optimized", "int8": "ours, int8 optimized"}
        rate = rates[name[precision]]
        assert rate["images_per_second"] > 0
        assert rate["agreement"] == 1
        assert rate["limit"] in ("operations", "bytes")
    assert rates["OpenVINO"]["reason"] == "needs openvino: pip install 'resnet-core[bench]'"
    assert rates["timm, eager"]["reason"]  # not installed here, or without this model
    assert record["ceilings"]["int8"] > 0
    printed = capsys.readouterr().out
    assert "**cifar_resnet20, inference, batch 4, 32 pixels**" in printed
    assert "| OpenVINO | not run: needs openvino: pip install" in printed


def test_training_is_checked_and_timed_and_words_choose_contenders(tmp_path):
    _, rates = measured("training", tmp_path, "--against", "ours", "--precision", "bfloat16")
    ours = ["ours, bf16", "ours, bf16 channels_last", "ours, fast", "ours, all of these"]
    assert list(rates) == ["torchvision, eager", *ours]
    assert rates["ours, fast"]["ratio"] > 0
    assert rates["ours, bf16 channels_last"]["ratio"] > 0
    assert rates["ours, all of these"]["reason"] == "it needs an NVIDIA GPU"


def broken(network):
    network.layer1[0].bn1.eps = 0.1
    return network


@pytest.mark.parametrize("training", [False, True])
def test_a_contender_that_computes_something_else_is_refused(training, case):
    make = partial(torch_step if training else torch_inference, build=lambda case: broken(theirs(case)))
    wrong = Contender(name="wrong", precision="float32", make=make)
    first = (TRAINING if training else INFERENCE)[0]
    right, refused = speed.measure(case, [first, wrong], training, rounds=1)
    assert right.images_per_second
    assert refused.images_per_second is None
    assert refused.reason.startswith("refused: its ")


def test_a_step_that_forgets_the_update_is_refused(case):
    def forgetful(case):
        step = torch_step(case, theirs)
        first = step()
        return lambda: first

    wrong = Contender(name="wrong", precision="float32", make=forgetful)
    (rate,) = speed.measure(case, [wrong], True, rounds=1)
    assert "its first update changes the loss by 1.0e+00 more or less" in rate.reason


def test_operations_are_those_of_describe_and_bytes_those_of_its_convolutions(case):
    operations, bytes_ = speed.limits(case, training=False)
    assert operations == 2 * speed.describe("cifar_resnet20", 32).multiply_adds * 4
    assert speed.limits(case, training=True)[0] == 3 * operations
    assert bytes_(4) == 4 * bytes_(1)
    stages = 6 * 32 * 1024, (16 * 1024 + 32 * 256) + 5 * 64 * 256, (32 * 256 + 64 * 64) + 5 * 128 * 64
    assert bytes_(1) == 4 * (19 * 1024 + sum(stages) + 64 + 10) + 269_722


def test_a_profile_shares_a_steps_time_among_kinds_of_operations(case):
    found = shares(torch_step(case, theirs), "cpu")
    assert sum(found.values()) == pytest.approx(1)
    assert min(found[kind] for kind in ("convolutions", "BatchNorm", "ReLU")) > 0


def test_the_largest_batch_is_refused_on_the_cpu():
    with pytest.raises(ValueError, match="give --batch a number on the CPU"):
        speed.main(["training", *TINY, "--batch", "0"])


def test_the_page_holds_the_tables_of_its_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "in_turn", lambda calls, rounds: {name: [1.0, 2.0] for name in calls})
    out, page = tmp_path / "startup.json", tmp_path / "page.md"
    assert speed.main(["startup", "--out", str(out)]) == 0
    page.write_text(f"before\n{speed.BEGIN}\nold\n{speed.END}\nafter\n")
    speed.write_page([out], page)
    assert page.read_text() == f"before\n{speed.BEGIN}\n\n{capsys.readouterr().out}\n{speed.END}\nafter\n"
    assert "| first logits, ours | 1.50 | 67% | 1.00 |" in page.read_text()


def test_machine_limits_bind_a_rate(case):
    rate = speed.Rate(form="x", precision="int8", images_per_second=4.0)
    operations, bytes_ = speed.limits(case, training=False)
    shared = speed.with_share(rate, case, False, {"int8": operations, "copy": bytes_(1) / 2})
    assert (shared.ceiling_share, shared.limit) == (2.0, "bytes")
    assert speed.with_share(replace(rate, images_per_second=None), case, False, {}).ceiling_share is None


def test_every_contender_has_a_name_of_its_own():
    for contenders in (INFERENCE, TRAINING):
        assert len({each.name for each in contenders}) == len(contenders)
    assert torch.get_num_threads() >= 1
