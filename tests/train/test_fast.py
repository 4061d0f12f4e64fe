"""`train.fast`: what is turned on for made-up seconds of a step, and a run that measured its own."""

from dataclasses import replace
from itertools import chain, repeat

import pytest
import torch

from resnet_core.recipes import fast as recipes_fast
from resnet_core.recipes.checks import check
from resnet_core.recipes.experiment import load
from resnet_core.recipes.plan import make_plan
from resnet_core.runs.folder import read_recipe
from resnet_core.runs.training import run
from resnet_core.train import StoppedError, TrainConfig, Trainer, fast
from tests.runs.test_runs import SHORT

PLAIN = TrainConfig()
LAST = replace(PLAIN, channels_last=True)
BF16 = replace(LAST, precision="bf16")


def say(line):
    said.append(line)


said = []


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    """A step returns its seconds."""
    said.clear()
    monkeypatch.setattr(fast, "seconds_of", lambda step: step())


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((1.0, 0.8, 0.5), BF16),
        ((1.0, 0.8, 0.79), LAST),  # too little to give up float32 for
        ((1.0, 1.2, 1.1), PLAIN),
        ((1.0, 1.2, 0.9), BF16),
    ],
)
def test_a_form_is_taken_where_it_saves_enough(seconds, chosen):
    steps = dict(zip([PLAIN, LAST, BF16], seconds, strict=True))
    config = replace(PLAIN, fast=True)
    assert fast.choose_form(config, lambda form: lambda: steps[form], cuda_graphs=False, say=say) == chosen
    line = f"fast: float32, channels_last {1000 * seconds[1]:.1f} ms a step {1 / seconds[1]:.2f}x"
    assert said[1].split() == line.split()


def test_what_is_on_stays_on_and_graphs_come_last():
    assert fast.forms(LAST, cuda_graphs=True) == [LAST, BF16, replace(BF16, cuda_graphs=True)]
    assert fast.forms(replace(PLAIN, precision="bf16"), cuda_graphs=False) == [replace(PLAIN, precision="bf16"), BF16]


@pytest.mark.parametrize(
    ("num_steps", "first", "compiled", "taken", "line"),
    [
        (
            1200,
            40,
            0.1,
            False,
            "fast: compiling is not tried: it is assumed to save 10% of about 1,200 s and to take 60 s",
        ),
        (2000, 40, 0.9, True, "fast: compiling took 40 s for one of 2 shapes, and saves 200 s"),
        (2000, 110, 0.9, False, "fast: compiling took 110 s for one of 2 shapes, and saves 200 s"),
        (9000, 40, 0.97, False, "fast: compiling took 40 s for one of 2 shapes, and saves 270 s"),
        (2000, 40, None, False, "fast: the network cannot be compiled here (no compiler)"),
    ],
)
def test_a_network_is_compiled_where_that_pays(num_steps, first, compiled, taken, line):
    def step_of(form):
        if form.compile and compiled is None:
            raise RuntimeError("no compiler\nand many lines")
        seconds = chain([first], repeat(compiled)) if form.compile else repeat(1.0)
        return lambda: next(seconds)

    found = fast.choose_compiled(BF16, step_of, num_steps=num_steps, num_shapes=2, say=say)
    assert found == replace(BF16, compile=taken)
    assert any(each.startswith(line) for each in said)


def test_threads_are_halved_as_long_as_that_helps(monkeypatch):
    threads = {"now": 16}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads["now"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.update(now=count))
    seconds = {16: 3.0, 8: 2.0, 4: 1.0, 2: 1.5}
    monkeypatch.setattr(fast, "with_threads", lambda count, step: lambda: seconds[count])
    assert fast.choose_threads(lambda: None, say) == threads["now"] == 4


def test_a_run_measures_once_records_its_choice_and_is_the_run_of_these_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    recipe = replace(SHORT, train=replace(SHORT.train, fast=True), data=replace(SHORT.data, train_size=8))
    check(load(recipe))
    assert "fast           steps are measured before the first one" in str(make_plan(load(recipe)))

    monkeypatch.setattr(recipes_fast, "SECONDS_A_STEP", 0)
    whole = Trainer.train_step

    def stopping(self, *batch):
        self.stop_asked = lambda: self.step == 6
        return whole(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", stopping)
        with pytest.raises(StoppedError):
            run(recipe, tmp_path / "fast")
    printed = capsys.readouterr().out
    assert "fast: measuring steps of 8 images, a part of a batch of 256" in printed
    assert "fast: bf16, channels_last" in printed
    chosen = read_recipe(tmp_path / "fast")
    assert not chosen.train.fast

    # It continues without measuring.
    monkeypatch.setattr("resnet_core.runs.training.measured", None)
    run(recipe, tmp_path / "fast")
    run(chosen, tmp_path / "by hand")
    assert read_recipe(tmp_path / "fast") == read_recipe(tmp_path / "by hand") == chosen
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("fast", "by hand")]
    assert weights[0] == weights[1]

    # Its settings by hand are the same run, others are not.
    assert recipes_fast.with_choice_of(recipe, chosen) == chosen
    with pytest.raises(ValueError, match="holds the run of another recipe"):
        run(replace(chosen, train=replace(chosen.train, compile=True)), tmp_path / "fast")
