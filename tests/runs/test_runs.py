"""A run's folder: who may continue there, with what, and what is said of damaged files."""

import errno
import subprocess
import sys
from dataclasses import replace

import pytest

from resnet_core.foundation.lock import FolderInUseError, owning
from resnet_core.recipes import RECIPES, experiment
from resnet_core.runs.folder import read_recipe, read_result
from resnet_core.runs.training import run
from resnet_core.train import StoppedError, TrainConfig, Trainer, load_checkpoint
from resnet_core.train.averaging import AveragingConfig
from resnet_core.train.checkpoint import list_checkpoints
from resnet_core.train.report import read_records
from resnet_core.train.schedules import ScheduleConfig
from tests.conftest import claim

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
        claim(edited, stopped)
    (stopped / "recipe.toml").unlink()
    claim(SHORT, stopped)
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
        claim(other, stopped)
    trainer = make_trainer(other, folder=stopped)
    with pytest.raises(ValueError, match=r"step-00000007 holds the weights of another network \(Missing key"):
        trainer.fit()


def test_a_run_that_has_done_more_than_it_now_should_is_refused(stopped):
    shorter = replace(SHORT, train=TrainConfig(epochs=1))
    with pytest.raises(ValueError, match="has done 7 steps, and this run ends after 5; train for more epochs, or"):
        run(shorter, stopped, allow_changes=True)
    assert read_recipe(stopped) == SHORT


def test_another_optimizer_is_refused_and_an_average_may_begin_late(stopped):
    lamb = replace(SHORT, optimizer=replace(SHORT.optimizer, name="lamb", nesterov=False))
    with pytest.raises(ValueError, match="was trained with the optimizer SGD, and this run has Lamb; continue with"):
        run(lamb, stopped, allow_changes=True)
    assert read_recipe(stopped) == SHORT
    averaged = replace(SHORT, averaging=AveragingConfig(ema_decay=0.9))
    run(averaged, stopped, allow_changes=True)
    assert read_recipe(stopped) == averaged


def test_a_step_that_keeps_its_number_keeps_its_checkpoint(tmp_path, monkeypatch):
    """After 1 of 5 steps an epoch, continued with 6 an epoch: 1.2 is 1, and nothing is renumbered."""
    whole = Trainer.train_step

    def until_1(self, *batch):
        self.stop_asked = lambda: True
        return whole(self, *batch)

    def killed(self, *batch):
        raise KeyboardInterrupt

    for recipe, step, error in (
        (SHORT, until_1, StoppedError),
        (replace(SHORT, data=replace(SHORT.data, global_batch=239)), killed, KeyboardInterrupt),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "train_step", step)
            with pytest.raises(error):
                run(recipe, tmp_path / "run", allow_changes=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]


def test_what_is_refused_for_its_end_is_not_renumbered_either(stopped):
    shorter = replace(SHORT, train=TrainConfig(epochs=1), data=replace(SHORT.data, global_batch=128))
    with pytest.raises(ValueError, match="has done 15 steps, and this run ends after 11"):
        run(shorter, stopped, allow_changes=True)
    assert steps_in(stopped) == [5, 7]
    run(SHORT, stopped)


def test_where_all_checkpoints_were_set_aside_the_run_does_not_start_over(stopped):
    for path in list_checkpoints(stopped / "checkpoints"):
        path.rename(path.with_name(f"earlier-{path.name}"))
    with pytest.raises(ValueError, match="were set aside: earlier-step-00000005, earlier-step-00000007; rename one"):
        run(SHORT, stopped)


def test_the_checkpoint_knows_its_data_whatever_becomes_of_the_environment(stopped, monkeypatch):
    (stopped / "environment.json").unlink()
    real = experiment.identity
    monkeypatch.setattr(experiment, "identity", lambda dataset: {**real(dataset), "classes": 9})
    with pytest.raises(ValueError, match=r"holds a run on other data \(classes: 10 there and 9 here"):
        claim(SHORT, stopped)


def test_settings_that_may_change_are_recorded_as_they_are_now(stopped):
    here = replace(SHORT, data=replace(SHORT.data, workers=1))
    run(here, stopped)
    assert read_recipe(stopped) == here


def test_what_a_kill_leaves_half_written_is_removed(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".recipe.toml.0123abcd.part").touch()
    claim(SHORT, out)
    (out / ".model.safetensors.0123abcd.part").touch()
    claim(SHORT, out)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "recipe.toml"]


def test_an_evaluation_that_is_made_again_is_recorded_once(tmp_path, monkeypatch):
    """Stopped at the end of an epoch, continued, killed after its evaluation, and continued."""
    whole = Trainer.train_step

    def until_5(self, *batch):
        self.stop_asked = lambda: self.step == 4
        return whole(self, *batch)

    def killed(self, *batch):
        raise KeyboardInterrupt

    for step, error in ((until_5, StoppedError), (killed, KeyboardInterrupt), (killed, KeyboardInterrupt)):
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "train_step", step)
            with pytest.raises(error):
                run(SHORT, tmp_path / "run")
    run(SHORT, tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "metrics.jsonl"))
    assert [record["step"] for record in records if record["event"] == "eval"] == [5, 10]


def test_a_folder_is_owned_once_also_within_one_process(tmp_path):
    with owning(tmp_path):
        with pytest.raises(FolderInUseError, match="is in use by this process"), owning(tmp_path):
            pass
        ask = "import fcntl; fcntl.lockf(open(r'%s', 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)" % (tmp_path / ".lock")
        assert subprocess.run([sys.executable, "-c", ask], capture_output=True).returncode == 1
    with owning(tmp_path):
        pass


def test_a_filesystem_without_locks_is_told_as_such(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("resnet_core.foundation.lock.fcntl.lockf", refuse)
    with (
        pytest.raises(OSError, match=r"is on a filesystem without locks \(No locks available\); choose"),
        owning(tmp_path),
    ):
        pass


def test_a_reader_that_goes_does_not_end_the_training(tmp_path):
    words = f"-m resnet_core train digits --out {tmp_path / 'run'} --train.epochs 2 --schedule.warmup-epochs 0"
    command = f"'{sys.executable}' {words} --data.global-batch 256 | head -n 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0), ended.stderr
    assert (tmp_path / "run" / "result.json").exists()
