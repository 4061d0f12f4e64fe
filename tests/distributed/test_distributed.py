"""Several ranks, as real processes."""

import contextlib
import json
import os
import signal
import time
from functools import partial, partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_core.data import EvalLoader, Split, TrainLoader
from resnet_core.train import (
    NonFiniteLossError,
    RunConfig,
    StoppedError,
    TrainConfig,
    Trainer,
    World,
    join_world,
    launch,
)
from resnet_core.train.metrics import classification_sums
from resnet_core.train.report import Report, read_records
from tests import forks


def split(count):
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randn(count, 2, 6, 6, generator=generator), torch.arange(count) % 3)


class Network(nn.Sequential):
    def forward(self, images):  # torch 2.11 compiles no forward of its own modules
        return super().forward(images)


def make_trainer(world, norm, **config):
    torch.manual_seed(0)
    model = Network(nn.Conv2d(2, 4, 3), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    shared = {"rank": world.rank, "world_size": world.size}
    return Trainer(
        TrainConfig(epochs=3, **config),
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        world=world,
        loss_fn=F.cross_entropy,
        lr_fn=lambda step: 0.1,
        train_loader=TrainLoader(split(26), augment=lambda image, _: image, global_batch=8, seed=5, **shared),
        eval_loader=EvalLoader(split(5), batch=3, **shared),
        score_fn=classification_sums,
    )


def train_and_report(folder):
    """What each rank finds, into a file of its own."""
    with join_world("cpu") as world:
        found = {}
        for name, norm in (("none", nn.Identity), ("batch norm", nn.BatchNorm2d)):
            one = make_trainer(world, norm)
            found[name] = {"losses": [step.loss for step in one.steps()]}
            found[name]["own buffers"] = [buffer.tolist() for buffer in one.model.buffers()]
            found[name]["scores"] = one.evaluate()
            found[name]["state"] = [value.tolist() for value in one.model.state_dict().values()]
            gradients = [parameter.grad.untyped_storage().data_ptr() for parameter in one.model.parameters()]
            found[name]["gradients' storages"] = len(set(gradients))
        (folder / f"rank{world.rank}.json").write_text(json.dumps(found))
    return 0


def compile_and_report(folder):
    # Without inductor, whose compiler takes most of the time, and which test_trainer.py has.
    graphs = []
    nn.Module.compile = partialmethod(nn.Module.compile, backend=lambda graph, inputs: graphs.append(graph) or graph)
    with join_world("cpu") as world:
        one = make_trainer(world, nn.Identity, compile=True, accumulation=2)
        losses = [step.loss for step in one.steps()]
        (folder / f"rank{world.rank}.json").write_text(json.dumps([losses, len(graphs), list(one.model.state_dict())]))
    return 0


def fail_on_rank_1(folder):
    with join_world("cpu") as world:
        if world.rank == 1:
            return 7
        world.sum({"wait": 1})  # would wait for ever
    return 0


def end_by_rank_1(folder):
    """Rank 1 loses a loss or is asked to stop, at a step of which the losses are checked at once, or later."""
    with join_world("cpu") as world:
        found = []
        for every, lost, asked in ((1, 2, None), (3, 1, None), (3, None, 4)):
            one = make_trainer(world, nn.Identity)
            one.run = RunConfig(check_every_steps=every, log_every_steps=100)

            def here(step, one=one):
                return (world.rank, one.step) == (1, step)

            one.loss_fn = lambda outputs, _, lost=lost, here=here: outputs.mean() * (float("nan") if here(lost) else 1)
            one.stop_asked = partial(here, asked)
            try:
                one.fit()
            except (NonFiniteLossError, StoppedError) as error:
                found.append(str(error))
        (folder / f"rank{world.rank}.json").write_text(json.dumps(found))
    return 0


def slow_down_rank_1(folder):
    """24 steps, of which rank 1 sleeps through a part of the last 12; rank 0 reports each dozen."""
    with join_world("cpu") as world:
        report = Report(folder if world.is_main else None, quiet=True)
        one = make_trainer(world, nn.Identity)
        one.num_steps, one.run, one.report = 24, RunConfig(log_every_steps=12, eval_every_epochs=8), report

        def late(outputs, targets):
            time.sleep(SLEPT / 12 if (world.rank, one.step >= 12) == (1, True) else 0)
            return F.cross_entropy(outputs, targets)

        one.loss_fn = late
        one.fit()
    return 0


SLEPT = 1.2  # seconds in all


def die_on_rank_1(folder):
    with join_world("cpu") as world:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.sum({"wait": 1})
    return 0


def report_sockets(folder):
    """Addresses on which the launcher and this rank listen, while both are up (Linux)."""
    with join_world("cpu") as world:
        world.sum({"joined": 1})
        own = set()
        for process in (os.getpid(), os.getppid()):
            for entry in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    own.add(os.readlink(entry))
        listening = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                    listening.append(fields[1].split(":")[0])
        (folder / f"rank{world.rank}.json").write_text(json.dumps(listening))
        world.sum({"done": 1})
    return 0


def raise_on_main(folder):
    def refuse():
        raise ValueError("said by rank 0")

    with join_world("cpu") as world:
        assert world.run_on_rank_0(lambda: world.rank) == 0
        try:
            world.run_on_rank_0(refuse)
        except ValueError as error:
            (folder / f"rank{world.rank}.txt").write_text(str(error))
    return 0


def meet_a_damaged_sample_on_rank_1(folder):
    class Damaged(Split):
        def take(self, indices):
            if 3 in indices:  # rank 1's share: 1, 3
                raise ValueError("sample 3 is damaged")
            return super().take(indices)

    with join_world("cpu") as world:
        one = make_trainer(world, nn.Identity)
        samples = Damaged(*vars(split(5)).values())
        one.eval_loader = EvalLoader(samples, batch=1, rank=world.rank, world_size=world.size)
        try:
            one.evaluate()
        except ValueError as error:
            (folder / f"rank{world.rank}.txt").write_text(str(error))
    return 0


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    assert forks.launch(train_and_report, (folder,), 2) == 0
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_ranks_hold_the_same_weights_and_report_the_same_numbers(found):
    for name in ("none", "batch norm"):
        for key in ("losses", "scores", "state"):
            assert found[0][name][key] == found[1][name][key]


def test_gradients_are_averaged_where_they_lie(found):
    """`gradient_as_bucket_view`: what is exchanged is not a copy. So small a network is one bucket."""
    assert [rank["batch norm"]["gradients' storages"] for rank in found] == [1, 1]


def test_a_compiled_network_is_a_replica_as_it_is(found, tmp_path):
    assert forks.launch(compile_and_report, (tmp_path,), 2) == 0
    for rank in range(2):
        losses, compiled, names = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert losses == pytest.approx(found[rank]["none"]["losses"], abs=1e-5)
        assert compiled == 1
        assert names == ["0.weight", "0.bias", "4.weight", "4.bias"]


def test_buffers_differ_until_they_are_shared_and_then_are_rank_0s(found):
    (first, second) = (rank["batch norm"] for rank in found)
    assert first["own buffers"] != second["own buffers"]
    assert all(buffer in first["state"] for buffer in first["own buffers"])
    assert all(buffer in second["state"] for buffer in first["own buffers"])


def test_a_failing_rank_ends_the_others_with_its_status(tmp_path):
    assert forks.launch(fail_on_rank_1, (tmp_path,), 2) == 7


def test_a_loss_lost_or_a_stop_asked_for_on_one_rank_stops_all_at_the_same_step(tmp_path):
    assert forks.launch(end_by_rank_1, (tmp_path,), 2) == 0
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    at_once, later, stopped = found[0]
    assert at_once.startswith("the loss is nan at step 3 of 9: training stopped before that update")
    assert later.startswith("the loss is nan at step 2 of 9: training stopped 1 step later, with nothing saved")
    assert stopped.startswith("stopped after step 6 of 9")


def test_waiting_for_a_slow_rank_is_seen_when_it_happens(tmp_path):
    assert forks.launch(slow_down_rank_1, (tmp_path,), 2) == 0
    late = [record for record in read_records(tmp_path / "metrics.jsonl") if record["event"] == "train"][1]
    seconds = 12 * 8 / late["samples_per_second"]
    assert late["communication_wait"] * seconds > SLEPT / 2
    assert late["communication_wait"] + late["data_wait"] <= 1


def test_a_killed_rank_is_named(tmp_path, capfd):
    assert launch(die_on_rank_1, (tmp_path,), 2) == 128 + signal.SIGKILL
    assert "resnet-core: rank 1 was ended by SIGKILL, the others with it\n" in capfd.readouterr().err


def test_launched_processes_listen_on_this_machine_alone(tmp_path):
    assert forks.launch(report_sockets, (tmp_path,), 2) == 0
    for rank in range(2):
        addresses = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert addresses
        assert set(addresses) == {"0100007F"}  # 127.0.0.1 as /proc/net/tcp writes it


def test_what_rank_0_raises_every_rank_raises(tmp_path):
    assert forks.launch(raise_on_main, (tmp_path,), 2) == 0
    assert {path.read_text() for path in tmp_path.iterdir()} == {"said by rank 0"}
    assert len(list(tmp_path.iterdir())) == 2


def test_what_one_rank_meets_in_an_evaluation_every_rank_raises(tmp_path):
    assert forks.launch(meet_a_damaged_sample_on_rank_1, (tmp_path,), 2) == 0
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)] == ["sample 3 is damaged"] * 2


@pytest.mark.parametrize(("gpus", "processes"), [(0, 1), (1, 2)])
def test_device_auto_is_the_cpu_where_gpus_are_fewer_than_processes(monkeypatch, gpus, processes):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    with join_world("auto") as world:
        assert world == World(rank=0, size=1, device=torch.device("cpu"))


def test_too_few_gpus_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    message = "each process on this machine needs a GPU of its own, and torch finds 1 for 2; start fewer processes, or"
    with pytest.raises(ValueError, match=message), join_world("cuda"):
        pass
