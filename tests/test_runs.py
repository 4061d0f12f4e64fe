"""A run's folder: who may continue there, with what, and what is said of damaged files."""

from dataclasses import replace

import pytest

from resnet_core.recipes import RECIPES
from resnet_core.runs import prepare, read_recipe, read_result, run
from resnet_core.train import StoppedError, TrainConfig, Trainer, load_checkpoint
from resnet_core.train.checkpoint import list_checkpoints
from resnet_core.train.schedules import ScheduleConfig

SHORT = replace(
    RECIPES["digits"],
    schedule=ScheduleConfig(warmup_epochs=0),
    train=TrainConfig(epochs=2),
    data=replace(RECIPES["digits"].data, global_batch=256),
)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The folder of a run of 10 steps that was stopped after 7."""
    whole = Trainer.train_step

    def until_7(self, *batch):
        self.stop_asked = lambda: self.step == 6
        return whole(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", until_7)
        with pytest.raises(StoppedError, match="stopped after step 7 of 10, saved"):
            run(SHORT, tmp_path / "run")
    return tmp_path / "run"


def steps_in(folder):
    return [int(path.name.removeprefix("step-")) for path in list_checkpoints(folder / "checkpoints")]


def test_another_recipe_is_refused_with_what_to_do_and_continues_where_that_is_asked_for(stopped, capsys):
    other = replace(SHORT, optimizer=replace(SHORT.optimizer, lr=0.01))
    refusal = r"optimizer.lr is 0.1 there and 0.01 here\); choose another folder with --out; --allow-changes continues"
    with pytest.raises(ValueError, match=refusal):
        run(other, stopped)
    run(other, stopped, allow_changes=True)
    assert "continuing from step 7/10" in capsys.readouterr().out
    assert read_recipe(stopped) == other
    with pytest.raises(ValueError, match=rf"; --model.weights {stopped} starts another run from its weights"):
        run(SHORT, stopped, allow_changes=True)  # it is finished
    assert read_recipe(stopped) == other


def test_another_global_batch_goes_on_at_the_same_epoch_where_that_is_asked_for(stopped, capsys):
    half = replace(SHORT, data=replace(SHORT.data, global_batch=128))
    with pytest.raises(ValueError, match=r"data.global_batch is 256 there and 128 here"):
        run(half, stopped)
    assert steps_in(stopped) == [5, 7]
    run(half, stopped, allow_changes=True)
    assert "continuing from step 15/22" in capsys.readouterr().out  # 7 of 5 an epoch: 1.4 epochs; of 11 an epoch
    assert steps_in(stopped) == [15, 22]
    assert {path.name for path in (stopped / "checkpoints").glob("earlier-*")} == {
        "earlier-step-00000005",
        "earlier-step-00000007",
    }


def test_a_smaller_number_of_steps_is_found_again_as_the_newest(stopped, monkeypatch):
    double = replace(SHORT, data=replace(SHORT.data, global_batch=512))
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "steps", lambda self: iter(()))  # killed right after it has continued
        run(double, stopped, allow_changes=True)
    assert steps_in(stopped) == [3]
    assert load_checkpoint(stopped / "checkpoints" / "step-00000003").state["steps_per_epoch"] == 2


def test_the_checkpoint_says_which_recipe_it_is_of_whatever_recipe_toml_says(stopped):
    text = (stopped / "recipe.toml").read_text()
    (stopped / "recipe.toml").write_text(text.replace("lr = 0.1\n", "lr = 0.2\n"))
    edited = replace(SHORT, optimizer=replace(SHORT.optimizer, lr=0.2))
    with pytest.raises(ValueError, match=r"optimizer.lr is 0.1 there and 0.2 here"):
        prepare(edited, stopped)
    (stopped / "recipe.toml").unlink()
    prepare(SHORT, stopped)
    assert read_recipe(stopped) == SHORT


def test_a_damaged_result_is_named_and_once_removed_the_run_ends_again(stopped):
    result = run(SHORT, stopped)
    (stopped / "result.json").write_text('{"top1"')
    with pytest.raises(ValueError, match=r"result.json is not JSON .* remove it, and the run ends again"):
        read_result(stopped)
    (stopped / "result.json").unlink()
    again = run(SHORT, stopped)
    assert {key: again[key] for key in ("top1", "top5", "loss", "count", "steps")} == {
        key: result[key] for key in ("top1", "top5", "loss", "count", "steps")
    }


def test_weights_of_another_network_are_refused_by_the_trainer_itself(stopped, monkeypatch):
    from resnet_core.recipes import make_trainer

    other = replace(SHORT, model=replace(SHORT.model, name="cifar_resnet32"))
    with pytest.raises(ValueError, match=r"model.name is 'cifar_resnet20' there and 'cifar_resnet32' here"):
        prepare(other, stopped)
    trainer = make_trainer(other, folder=stopped)
    with pytest.raises(ValueError, match=r"step-00000007 is of another network or optimizer \(Missing key"):
        trainer.fit()
