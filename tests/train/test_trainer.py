"""The trainer on one process: interrupted, with a loss that is lost, and with each of its settings."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_core.data import EvalLoader, Split, TrainLoader
from resnet_core.train import NonFiniteLossError, RunConfig, StoppedError, TrainConfig, Trainer, World
from resnet_core.train.averaging import AveragingConfig, WeightAverage
from resnet_core.train.checkpoint import list_checkpoints
from resnet_core.train.metrics import classification_sums
from resnet_core.train.optimizers import OPTIMIZERS, OptimizerConfig, build_optimizer
from resnet_core.train.report import Report, read_records
from resnet_core.train.schedules import Schedule, ScheduleConfig
from resnet_core.train.seeds import seed_random_layers

EPOCHS, SAMPLES, BATCH = 3, 26, 8


def split(count=SAMPLES):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(count, 2, 6, 6, generator=generator), torch.arange(count) % 3)


def network():
    """BatchNorm has buffers and Dropout draws random numbers: what a resumed run could get wrong."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    )


lr_at = Schedule(config=ScheduleConfig(warmup_epochs=2 / 3), peak=0.1, steps_per_epoch=SAMPLES // BATCH, epochs=EPOCHS)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)


def trainer(folder=None, *, make_optimizer=sgd, report=None, model=None, loss_fn=F.cross_entropy, more=None, **config):
    model = model or network()
    options = {
        "lr_fn": lr_at,
        "train_loader": TrainLoader(split(), augment=lambda image, _: image, global_batch=BATCH, seed=5),
        "eval_loader": EvalLoader(split(7), batch=3),
        "score_fn": classification_sums,
        "seed": 5,
        "run": RunConfig(log_every_steps=2),
        "report": report or Report(quiet=True),
        **(more or {}),
    }
    config = TrainConfig(epochs=EPOCHS, **config)
    optimizer = make_optimizer(model)
    return Trainer(config, model, optimizer, world=World(), loss_fn=loss_fn, folder=folder, **options)


def assert_same_state(one, other):
    for (name, value), (other_name, expected) in zip(
        one.model.state_dict().items(), other.model.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(value, expected), name


def optimizer_of(name):
    return lambda model: build_optimizer(model, OptimizerConfig(name=name, weight_decay=1e-3))


def assert_a_cut_changes_nothing(folder, cut_after, **options):
    whole = trainer(**options)
    whole.fit()
    cut = trainer(folder, **options)
    for step in cut.steps():
        if step.step == cut_after:
            cut.save()
            break
    torch.compiler.reset()  # as in a process that has compiled nothing yet
    resumed = trainer(folder, **options)
    resumed.fit()
    assert resumed.step == whole.step == 9
    assert_same_state(resumed, whole)


@pytest.mark.parametrize(
    "make_optimizer", [*map(optimizer_of, OPTIMIZERS), lambda m: torch.optim.AdamW(m.parameters())]
)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cut_after", [1, 3, 5, 8])
def test_a_run_cut_at_any_step_ends_with_the_same_weights(tmp_path, cut_after, channels_last, make_optimizer):
    assert_a_cut_changes_nothing(tmp_path, cut_after, channels_last=channels_last, make_optimizer=make_optimizer)


def test_a_compiled_run_that_is_cut_before_an_evaluation_ends_with_the_same_weights(tmp_path):
    """The process that continues meets the evaluation's batch first, and of another size."""
    one_batch = EvalLoader(split(7), batch=7)
    whole = trainer(tmp_path, compile=True, more={"eval_loader": one_batch})
    for step in whole.steps():
        if step.step == 3:
            whole.save()
    torch.compiler.reset()  # as in a process that has compiled nothing yet
    resumed = trainer(tmp_path, compile=True, more={"eval_loader": one_batch})
    resumed.fit()
    torch.compiler.reset()
    assert resumed.step == whole.step == 9
    assert_same_state(resumed, whole)


def test_evaluating_in_between_changes_nothing(tmp_path):
    plain, evaluated = trainer(), trainer()
    for _ in plain.steps():
        pass
    for _ in evaluated.steps():
        evaluated.evaluate()
        evaluated.evaluate()
    assert_same_state(plain, evaluated)


def test_evaluation_is_exact_and_leaves_training_mode():
    one = trainer()
    one.model.train()
    scores = one.evaluate()
    assert one.model.training
    one.model.eval()
    samples = split(7)
    hits = (one.model(samples.images).argmax(dim=1) == samples.labels).sum().item()
    assert scores["count"] == 7
    assert scores["top1"] == hits / 7


def test_fit_records_each_step_that_is_due_and_each_evaluation(tmp_path):
    with Report(tmp_path) as report:
        scores = trainer(tmp_path / "checkpoints", report=report).fit()
    records = list(read_records(tmp_path / "metrics.jsonl"))
    assert [record["step"] for record in records if record["event"] == "train"] == [2, 4, 6, 8]
    evaluations = [record for record in records if record["event"] == "eval"]
    assert [(record["step"], record["epoch"]) for record in evaluations] == [(3, 1), (6, 2), (9, 3)]
    assert evaluations[-1]["top1"] == scores["top1"]
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [
        f"step-{step:08}" for step in (3, 6, 9)
    ]


def test_a_continued_record_has_each_step_once(tmp_path):
    with Report(tmp_path) as report:
        cut = trainer(tmp_path / "checkpoints", report=report)
        report.start(0, cut.num_steps)
        for step in cut.steps():
            report.record("train", step=step.step, epoch=step.epoch, loss=step.loss, lr=step.lr)
            if step.step == 6:
                cut.save()
            if step.step == 8:
                break
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # cut off while writing
    with Report(tmp_path) as report:
        trainer(tmp_path / "checkpoints", report=report).fit()
    steps = [record["step"] for record in read_records(tmp_path / "metrics.jsonl") if record["event"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6, 8]


LATER = {"more": {"run": RunConfig(check_every_steps=100, log_every_steps=100)}}


def test_losses_that_are_checked_later_change_nothing(tmp_path):
    once, later = trainer(), trainer(tmp_path, **LATER)
    steps = [step for step in once.steps() if step.step % 3 == 0]
    for step, other in zip(steps, later.steps(), strict=True):
        assert step == other
        if step.step == 6:
            later.save()
    assert_same_state(later, once)
    assert_a_cut_changes_nothing(tmp_path / "cut", 6, **LATER)

    # A request to stop waits for the check.
    stopped = trainer(tmp_path / "stopped", **LATER)
    stopped.stop_asked = lambda: stopped.step == 4
    with pytest.raises(StoppedError, match="stopped after step 6 of 9, saved"):
        stopped.fit()


def test_a_lost_loss_that_is_found_later_is_named_and_not_saved(tmp_path):
    one = trainer(tmp_path, **LATER)
    one.loss_fn = lambda *batch: F.cross_entropy(*batch) * (float("nan") if one.step == 3 else 1)
    with pytest.raises(
        NonFiniteLossError, match="nan at step 4 of 9: training stopped 2 steps later, with nothing"
    ) as lost:
        one.fit()
    assert lost.value.step == 3
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003"]

    # Where data do not come, the losses so far are checked before they are saved.
    one.unchecked.append((4, torch.full((3,), float("nan"))))
    with pytest.raises(NonFiniteLossError, match="nan at step 5 of 9"):
        one._stop_without_data()


def test_a_lost_loss_stops_before_the_weights_and_names_the_step(tmp_path):
    def lost_at_step_5(outputs, targets):
        lost_at_step_5.calls += 1
        return F.cross_entropy(outputs, targets) * (float("nan") if lost_at_step_5.calls == 5 else 1)

    lost_at_step_5.calls = 0
    one = trainer(tmp_path, loss_fn=lost_at_step_5)
    with pytest.raises(NonFiniteLossError, match="the loss is nan at step 5 of 9"):
        one.fit()
    assert one.step == 4
    assert all(value.isfinite().all() for value in one.model.state_dict().values())
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003"]


def test_lost_gradients_stop_before_the_weights(tmp_path):
    def lost_at_step_5(outputs, targets):
        lost_at_step_5.calls += 1
        loss = F.cross_entropy(outputs, targets)
        if lost_at_step_5.calls == 5:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    lost_at_step_5.calls = 0
    one = trainer(tmp_path, loss_fn=lost_at_step_5)
    with pytest.raises(NonFiniteLossError, match=r"the gradients' norm is (nan|inf) at step 5 of 9: training stopped"):
        one.fit()
    assert one.step == 4
    assert all(value.isfinite().all() for value in one.model.state_dict().values())


def test_a_save_that_fails_in_the_background_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("resnet_core.train.checkpoint.save_checkpoint", full)
    one = trainer(tmp_path)
    slow = one.train_step
    one.train_step = lambda *batch: (time.sleep(0.1), slow(*batch))[1]
    with pytest.raises(OSError, match="the disk is full"):
        one.fit()
    assert 4 <= one.step <= 5  # the save began after step 3


def test_weights_lost_in_an_update_are_found_by_the_evaluation_and_not_saved(tmp_path):
    one = trainer(tmp_path)
    one.lr_fn = lambda step: float("inf") if step == 5 else 0.1
    with pytest.raises(NonFiniteLossError, match=r"the evaluation after step 6 of 9 gives .*nan"):
        one.fit()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003"]


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"channels_last": True}])
def test_precision_and_memory_format_follow_the_same_path(options):
    one, reference = trainer(**options), trainer()
    losses, expected = ([step.loss for step in each.steps()] for each in (one, reference))
    assert losses == pytest.approx(expected, rel=0.05)
    assert next(one.model.parameters()).dtype == torch.float32
    if options.get("channels_last"):
        assert one.model[0].weight.is_contiguous(memory_format=torch.channels_last)
        seen = []
        one.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        one.evaluate()
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)
        assert not seen[0].is_contiguous()
    else:
        assert losses != expected


def test_a_record_says_where_the_time_went(tmp_path):
    with Report(tmp_path) as report:
        trainer(report=report).fit()
    record = next(read_records(tmp_path / "metrics.jsonl"))
    assert record["gradient_norm"] > 0
    assert 0 <= record["data_wait"] < 1
    assert record["communication_wait"] == 0
    assert 0.05 < record["peak_memory_gib"] < 100
    assert record["samples_per_second"] > 0


class Plain(nn.Module):
    """No norm, no dropout: each sample is computed by itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


@pytest.mark.parametrize("parts", [2, 3, 5, 8])
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts):
    """3 parts of 8 samples are not alike: 3, 3 and 2."""
    whole, accumulated = trainer(model=Plain()), trainer(model=Plain(), accumulation=parts)
    computed = []
    accumulated.model.register_forward_pre_hook(lambda module, inputs: computed.append(len(inputs[0])))
    next(accumulated.steps())
    assert len(computed) == parts
    assert sum(computed) == BATCH
    accumulated = trainer(model=Plain(), accumulation=parts)
    losses, expected = ([step.loss for step in each.steps()] for each in (accumulated, whole))
    assert losses == pytest.approx(expected, abs=1e-6)
    for ours, theirs in zip(accumulated.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_more_parts_than_samples_are_refused():
    with pytest.raises(
        ValueError, match=r"train.accumulation 9 is more parts than the 8 samples that each process has"
    ):
        next(trainer(accumulation=9).steps())


def test_gradients_are_scaled_down_to_the_norm_and_their_own_is_recorded():
    free, bound = trainer(model=Plain()), trainer(model=Plain(), more={"max_gradient_norm": 0.5})
    norms = [next(each.steps()).gradient_norm for each in (free, bound)]
    assert norms[0] == norms[1] > 0.5
    total = sum(parameter.grad.square().sum() for parameter in bound.model.parameters()).sqrt()
    assert total.item() == pytest.approx(0.5, rel=1e-4)


def test_a_part_of_the_network_learns_at_its_own_rate():
    def two_rates(model):
        body, head = [*model.conv.parameters()], [*model.fc.parameters()]
        return torch.optim.SGD([{"params": body}, {"params": head, "lr_scale": 10.0}], lr=0.1)

    one = trainer(model=Plain(), make_optimizer=two_rates)
    step = next(one.steps())
    assert [group["lr"] for group in one.optimizer.param_groups] == [step.lr, 10 * step.lr]


def averaged():
    return {"average": WeightAverage(AveragingConfig(ema_decay=0.7))}


def test_the_average_is_evaluated_and_training_goes_on_without_it():
    plain, one = trainer(), trainer(more=averaged())
    assert [step.loss for step in plain.steps()] == [step.loss for step in one.steps()]
    scores = one.evaluate()
    assert_same_state(plain, one)
    plain.model.load_state_dict(one.weights())
    assert plain.evaluate() == scores
    assert one.weights().keys() == one.model.state_dict().keys()
    assert not torch.equal(one.weights()["0.weight"], one.model[0].weight)


@pytest.mark.parametrize("cut_after", [1, 4])
def test_a_cut_run_ends_with_the_same_average(tmp_path, cut_after):
    whole, cut = trainer(more=averaged()), trainer(tmp_path, more=averaged())
    whole.fit()
    for step in cut.steps():
        if step.step == cut_after:
            cut.save()
            break
    resumed = trainer(tmp_path, more=averaged())
    resumed.fit()
    for name, value in whole.weights().items():
        assert torch.equal(resumed.weights()[name], value), name


def test_a_compiled_network_learns_the_same():
    one, reference = trainer(model=Plain(), compile=True), trainer(model=Plain())
    torch._dynamo.utils.counters.clear()
    losses, expected = ([step.loss for step in each.steps()] for each in (one, reference))
    assert losses == pytest.approx(expected, abs=1e-5)
    assert torch._dynamo.utils.counters["frames"] == {"total": 1, "ok": 1}
    assert list(one.model.state_dict()) == list(reference.model.state_dict())
    torch.compiler.reset()


def test_the_same_algorithms_each_time_are_asked_of_torch():
    try:
        torch.backends.cudnn.benchmark = True
        trainer(deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(False)


def test_batchnorm_over_all_processes_is_refused_on_the_cpu():
    with pytest.raises(ValueError, match=r"train.sync_batchnorm: torch synchronizes BatchNorm only on GPUs; leave"):
        trainer(sync_batchnorm=True)


def test_a_cuda_graph_is_refused_on_the_cpu_and_by_several_processes():
    config = TrainConfig(cuda_graphs=True)
    config.check_device("cuda")
    for device, processes in (("cpu", 1), ("cuda", 2)):
        with pytest.raises(ValueError, match=f"and this run has {processes} on {device.upper()}; leave it out"):
            config.check_device(device, processes)
    with pytest.raises(ValueError, match=r"train\.cuda_graphs needs one process"):
        trainer(cuda_graphs=True)


def test_a_trainer_does_not_measure():
    with pytest.raises(ValueError, match=r"train\.fast is replaced by what `resnet-core train` measures"):
        trainer(fast=True)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TrainConfig, "epochs"),
        (TrainConfig, "accumulation"),
        (RunConfig, "log_every_steps"),
        (RunConfig, "check_every_steps"),
        (RunConfig, "eval_every_epochs"),
        (RunConfig, "checkpoint_every_epochs"),
        (RunConfig, "keep_checkpoints"),
        (RunConfig, "timeout_seconds"),
    ],
)
def test_settings_below_1_are_refused(config, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1.*, got 0"):
        config(**{name: 0})


@pytest.mark.parametrize("name", ["threads", "checkpoint_every_steps", "compare_replicas_every_steps"])
def test_settings_below_0_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1; 0 turns it off"):
        RunConfig(**{name: -1})


def test_fp16_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="fp16 is not offered: its gradients need a loss scale"):
        TrainConfig(precision="fp16")


def test_random_layers_draw_as_after_torchs_own_seed():
    inputs = torch.ones(1000)
    torch.manual_seed(12345)
    expected = F.dropout(inputs)
    seed_random_layers(12345, torch.device("cpu"))
    assert torch.equal(F.dropout(inputs), expected)


def test_none_asks_for_what_is_usual_and_a_folder_becomes_a_path(tmp_path):
    usual = trainer(str(tmp_path), more={"run": None, "report": None, "about": None})
    assert (usual.run, usual.about, usual.folder) == (RunConfig(), {}, tmp_path)
