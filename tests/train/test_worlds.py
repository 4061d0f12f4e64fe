"""Worlds of 1 to 4 processes: the same evaluation to the last sample, the same training where samples are computed by
themselves, one exchange of gradients a step."""

import json
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from parity.process_counts import (
    BATCH,
    EPOCHS,
    NETWORKS,
    SIZES,
    STEPS,
    difference,
    make_trainer,
    read,
    train_all,
    trained,
)
from resnet_core.data import EvalLoader, Split
from resnet_core.train import World, join_world
from tests.forks import launch

WORLDS = (1, 2, 3, 4)
MOST_SAMPLES = 65
# [samples, batch]: fewer samples than ranks, shares that are not alike, batches that are full, or not, or one too many.
SOME_EVALUATIONS = [(count, batch) for count in (1, 2, 3, 4, 5, 8, 9, 64, 65) for batch in (1, 2, 3, 9)]
ALL_EVALUATIONS = list(product(range(1, MOST_SAMPLES + 1), range(1, 10)))
CLASSES = 7
TAIL = 12  # a global batch that every world divides, and the samples do not fill


def samples(count):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(MOST_SAMPLES, 6, generator=generator).double()
    return Split(images[:count], (torch.arange(MOST_SAMPLES) % CLASSES)[:count])


def classifier():
    torch.manual_seed(4)
    return nn.Linear(6, CLASSES).double()


def evaluations(world, pairs):
    """[samples, batch, the trainer's scores]."""
    one = make_trainer(classifier(), world)
    for count, batch in pairs:
        one.eval_loader = EvalLoader(samples(count), batch=batch, rank=world.rank, world_size=world.size)
        yield count, batch, one.evaluate()


def check_evaluations(found):
    data = samples(MOST_SAMPLES)
    highest = classifier()(data.images).argsort(dim=1, descending=True)
    hits = (highest == data.labels[:, None]).int()
    for count, batch, scores in found:
        right = {key: int(hits[:count, :k].sum()) for key, k in (("top1", 1), ("top5", 5))}
        assert scores["count"] == count, (count, batch)
        assert {key: scores[key] for key in right} == {key: n / count for key, n in right.items()}, (count, batch)


def evaluate_all(folder):
    with join_world("cpu") as world:
        write(folder, world, list(evaluations(world, ALL_EVALUATIONS)))
    return 0


def write(folder, world, answers):
    (folder / f"rank{world.rank}.json").write_text(json.dumps(answers))


def read_answers(folder, size):
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]


def with_exchanges(world, accumulation):
    """The training in parts, and how many numbers each of its steps' exchanges of gradients carried in all."""
    sent = []

    def counting(state, bucket):
        sent.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    one = make_trainer(NETWORKS["without BatchNorm"](), world, accumulation=accumulation)
    if world.size > 1:
        one.replica.register_comm_hook(None, counting)
    result = trained(one)
    return {"sent": sum(sent), **{key: value.tolist() for key, value in result.items()}}


def prove(folder):
    """Writes what the tests of this file ask of a world; each rank writes its answers to a file of its own."""
    with join_world("cpu") as world:
        if world.size in SIZES:
            train_all(world, folder)
        tail = make_trainer(NETWORKS["without BatchNorm"](), world, global_batch=TAIL)
        answers = {
            "evaluations": list(evaluations(world, SOME_EVALUATIONS)),
            "tail": [step.loss for step in tail.steps()],
        }
        if world.size == 2:
            answers["parts"] = [with_exchanges(world, accumulation) for accumulation in (1, 2)]
        write(folder, world, answers)
    return 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {size: tmp_path_factory.mktemp(f"world{size}") for size in WORLDS}
    prove(found[1])
    for size in WORLDS[1:]:
        assert launch(prove, (found[size],), size) == 0
    return found


def answers(folders, size):
    return read_answers(folders[size], size)


@pytest.mark.parametrize("size", WORLDS)
def test_an_evaluation_counts_what_one_go_counts(folders, size):
    for found in answers(folders, size):
        assert len(found["evaluations"]) == len(SOME_EVALUATIONS)
        check_evaluations(found["evaluations"])


@pytest.mark.slow
@pytest.mark.parametrize("size", WORLDS)
def test_every_evaluation_counts_what_one_go_counts(tmp_path, size):
    assert launch(evaluate_all, (tmp_path,), size) == 0
    for found in read_answers(tmp_path, size):
        assert len(found) == 65 * 9
        check_evaluations(found)


@pytest.mark.parametrize("name", ["without BatchNorm", "with frozen BatchNorm"])
@pytest.mark.parametrize("size", SIZES[1:])
def test_where_each_sample_is_computed_by_itself_a_world_trains_as_one_process(folders, name, size):
    one = read(folders[1])[name]
    found = difference(read(folders[size])[name], one)
    assert len(one["losses"]) == EPOCHS * STEPS == 30
    assert max(found) <= 1e-6
    start = torch.cat([each.detach().flatten() for each in NETWORKS[name]().parameters()])
    assert (one["weights"] - start).abs().max() > 0.01  # they have come a way together


@pytest.mark.parametrize("size", SIZES[1:])
def test_with_batchnorm_a_world_is_not_one_process(folders, size):
    found = difference(read(folders[size])["with BatchNorm"], read(folders[1])["with BatchNorm"])
    assert min(found) > 1e-3


def test_a_step_in_parts_exchanges_gradients_once_and_ends_with_the_same_weights(folders):
    parameters = sum(each.numel() for each in NETWORKS["without BatchNorm"]().parameters())
    for found in answers(folders, 2):
        whole, parts = found["parts"]
        assert whole["sent"] == parts["sent"] == EPOCHS * STEPS * parameters
        for key in ("losses", "weights"):
            assert parts[key] == pytest.approx(whole[key], abs=1e-12)


@pytest.mark.parametrize("size", WORLDS)
def test_samples_that_fill_no_global_batch_sit_out_and_every_rank_does_the_same_steps(folders, size):
    one = make_trainer(NETWORKS["without BatchNorm"](), World(), global_batch=TAIL)
    left_over = (STEPS * BATCH + 3) % TAIL
    assert left_over > 0
    (expected,) = (found["tail"] for found in answers(folders, 1))
    assert len(expected) == one.num_steps == EPOCHS * ((STEPS * BATCH + 3) // TAIL)
    for found in answers(folders, size):
        assert found["tail"] == pytest.approx(expected, abs=1e-12)
