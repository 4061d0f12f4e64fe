"""Batches: the same whatever the workers and ranks, and wherever an epoch is entered."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resnet_core.data import Augmentation, EvalLoader, ImageError, ImageFiles, Mixing, Split, TrainLoader
from resnet_core.data.folders import load_test_folder
from resnet_core.data.sampler import epoch_order
from resnet_core.data.transforms import growing_size
from resnet_core.data.workers import WorkerError, begin_worker

# Python 3.12 warns of any fork beside threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")


def may_mount():
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("unshare") is not None


def split(count=23, size=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count))


def augmentation(**settings):
    return Augmentation(mean=(0.5,) * 3, std=(0.5,) * 3, size=8, **settings)


MOVED = {"crop_padding": 2, "flip": True}
EVERYTHING = {**MOVED, "trivial_augment": True, "random_erasing": 0.5}


def loader(settings=MOVED, samples=None, **options):
    return TrainLoader(
        samples or split(), augment=augmentation(**settings), **{"global_batch": 4, "seed": 3, **options}
    )


def same(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(value, other)
        for pair in zip(batches, others, strict=True)
        for value, other in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_batches(workers):
    mixing = Mixing(num_classes=23, mixup=0.2, cutmix=1.0)
    alone = loader(EVERYTHING, mix=mixing, repeats=2)
    with_workers = loader(EVERYTHING, mix=mixing, repeats=2, workers=workers)
    for epoch, start in ((2, 0), (0, 3)):  # the workers stay from epoch to epoch
        assert same(list(alone.epoch(epoch, start)), list(with_workers.epoch(epoch, start)))


@given(
    world_size=st.integers(1, 4),
    start=st.integers(0, 3),
    epoch=st.integers(0, 5),
    repeats=st.integers(1, 2),
    settings=st.sampled_from([MOVED, EVERYTHING, {"random_resized_crop": 0.1, "rand_augment_ops": 2}]),
)
def test_a_samples_view_depends_on_seed_epoch_and_copy_alone(world_size, start, epoch, repeats, settings):
    options = {"global_batch": 12, "repeats": repeats, "samples": split(50)}
    whole = list(loader(settings, **options).epoch(epoch))[start:]
    parts = [
        list(loader(settings, **options, rank=rank, world_size=world_size).epoch(epoch, start=start))
        for rank in range(world_size)
    ]
    joined = [tuple(map(torch.cat, zip(*pair, strict=True))) for pair in zip(*parts, strict=True)]
    assert same(whole, joined)


def test_a_batch_is_mixed_the_same_wherever_the_epoch_is_entered_and_differently_on_each_rank():
    options = {"mix": Mixing(num_classes=23, mixup=1.0), "global_batch": 8}
    whole = list(loader({}, **options).epoch(1))
    assert same(whole[1:], list(loader({}, **options).epoch(1, start=1)))
    shares = [list(loader({}, **options, rank=rank, world_size=2).epoch(1)) for rank in range(2)]
    drawn = [{targets.max().item() for _, targets in share} for share in shares]
    assert not drawn[0] & drawn[1]


def test_epochs_copies_and_seeds_differ_in_order_and_augmentation():
    def views(epoch, seed=3, repeats=1):
        batches = list(loader(seed=seed, repeats=repeats).epoch(epoch))
        return tuple(map(torch.cat, zip(*batches, strict=True)))

    first, labels = views(0)
    for other, other_labels in (views(1), views(0, seed=4)):
        assert not torch.equal(labels, other_labels)
        shared = sorted(set(labels.tolist()) & set(other_labels.tolist()))
        pairs = [(first[labels == each], other[other_labels == each]) for each in shared]
        assert sum(torch.equal(*pair) for pair in pairs) < len(pairs) / 4
    twice, labels = views(0, repeats=2)
    copies = [twice[labels == each] for each in labels.unique()]
    assert {len(pair) for pair in copies} == {2}
    assert sum(torch.equal(*pair) for pair in copies) < len(copies) / 4


def test_an_epoch_leaves_torchs_random_numbers_as_they_were():
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(loader(EVERYTHING, mix=Mixing(num_classes=23, mixup=1.0), workers=workers).epoch(0))
        list(EvalLoader(split(), batch=4, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_stay_for_the_next_epoch():
    one = loader(workers=1)

    def worker():
        list(one.epoch(0))
        return one.loader.loader._iterator._workers[0].pid

    assert worker() == worker()


def test_batches_of_an_epoch_that_another_ended_are_refused():
    one = loader()
    first = one.epoch(0)
    next(first)
    next(one.epoch(1))
    with pytest.raises(RuntimeError, match="iterate one epoch at a time"):
        next(first)


def test_an_epoch_ended_early_does_not_leak_into_the_next():
    one = loader(workers=2)
    next(one.epoch(0))
    assert same(list(one.epoch(1)), list(loader().epoch(1)))


def test_ctrl_c_reaches_the_main_process_alone():
    one = loader(workers=1)
    batches = one.epoch(0)
    received = [next(batches)]
    os.kill(one.loader.loader._iterator._workers[0].pid, signal.SIGINT)
    assert same(received + list(batches), list(loader().epoch(0)))


def test_a_growing_size_reaches_the_batches():
    size = partial(growing_size, start=32, end=96, epochs=3, step=32)
    one = loader({"random_resized_crop": 0.5, "size_of_epoch": size})
    assert [next(one.epoch(epoch))[0].shape[-1] for epoch in range(3)] == [32, 64, 96]


@given(st.integers(1, 65), st.integers(1, 4), st.integers(1, 9))
def test_evaluation_gives_each_sample_once_as_it_is(count, world_size, batch):
    samples = split(count, 1)
    shares = [list(EvalLoader(samples, batch=batch, rank=rank, world_size=world_size)) for rank in range(world_size)]
    images, labels = map(torch.cat, zip(*(pair for share in shares for pair in share), strict=True))
    assert sorted(labels.tolist()) == list(range(count))
    assert torch.equal(images, samples.images[labels])
    assert all(len(labels) == batch for share in shares for _, labels in share[:-1])


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_is_the_same_with_workers(workers):
    alone, helped = EvalLoader(split(), batch=4), EvalLoader(split(), batch=4, workers=workers)
    for _ in range(2):
        assert same(list(alone), list(helped))


@pytest.fixture
def damaged(tmp_path) -> ImageFiles:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (9 + number, 8), (60 * number, 9, 9)).save(tmp_path / name / f"{number}.png")
    whole = (tmp_path / "dog" / "2.png").read_bytes()
    (tmp_path / "dog" / "2.png").write_bytes(whole[:40])
    return load_test_folder(tmp_path)[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_stops_training_with_one_line_that_names_it(damaged, workers):
    with pytest.raises(ImageError, match=r"dog/2\.png is not a whole image ") as error:
        list(loader(samples=damaged, workers=workers).epoch(0))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("unable to allocate shared memory(shm)", r"could not hand over its batch \(unable to .*/dev/shm, which holds"),
        ("Too many open files", "raise the limit with `ulimit -n`, or use fewer workers or none"),
    ],
)
def test_a_batch_that_a_worker_cannot_send_ends_the_epoch_in_one_line(reason, message):
    one = loader(workers=1, mix=partial(unsendable, reason))
    with pytest.raises(WorkerError, match=message) as error:
        list(one.epoch(0))
    assert "\n" not in str(error.value)


class Unsendable:
    """Fails when the worker's thread sends it, as a tensor does that finds no shared memory."""

    def __init__(self, reason):
        self.reason = reason

    def __reduce__(self):
        raise RuntimeError(self.reason)


def unsendable(reason, images, labels, seed):
    return images, Unsendable(reason)


@pytest.mark.skipif(not may_mount(), reason="mounts a small /dev/shm, which needs root")
def test_a_small_dev_shm_ends_the_epoch_in_one_line():
    code = (
        "from tests.data.test_loaders import loader, split\n"
        "try: list(loader(samples=split(400), settings={}, global_batch=100, workers=2).epoch(0))\n"
        "except RuntimeError as error: print(error)"
    )
    mounted = f"mount -t tmpfs -o size=100k tmpfs /dev/shm; '{sys.executable}' -W ignore -c '{code}'"
    ended = subprocess.run(["unshare", "-m", "bash", "-c", mounted], capture_output=True, text=True, timeout=100)
    assert (ended.stderr, len(ended.stdout.splitlines())) == ("", 1)
    assert "could not hand over its batch (" in ended.stdout
    assert "No space left on device" in ended.stdout
    assert "batches travel through /dev/shm, which holds 0 MiB: enlarge it" in ended.stdout


def test_workers_that_cannot_be_started_are_reported_with_the_remedy(monkeypatch):
    def refuse(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resnet_core.data.loaders.DataLoader.__iter__", refuse)
    with pytest.raises(WorkerError, match=r"workers could not be started \(No space left .*; batches travel through"):
        list(loader(workers=1).epoch(0))


def test_more_workers_than_cores_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader(workers=1 + 2 * os.cpu_count())


def test_order_is_built_for_an_epoch_only(monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("an order was drawn to count batches")

    monkeypatch.setattr("resnet_core.data.loaders.epoch_order", refused)
    assert len(loader()) == len(epoch_order(23, seed=3, epoch=0)) // 4


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the parent's death")
def test_a_worker_whose_parent_was_killed_in_the_moment_of_the_fork_ends():
    worker = multiprocessing.get_context("fork").Process(target=begin_worker, args=(os.getppid(), 0))
    worker.start()
    worker.join(10)
    assert worker.exitcode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_a_signal_to_all_processes_in_the_moment_of_a_workers_start_does_not_kill_it(monkeypatch):
    def after_the_signal(parent, worker):
        os.kill(os.getpid(), signal.SIGTERM)
        begin_worker(parent, worker)

    monkeypatch.setattr("resnet_core.data.loaders.begin_worker", after_the_signal)
    assert len(list(loader(workers=1).epoch(0))) == 5
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
