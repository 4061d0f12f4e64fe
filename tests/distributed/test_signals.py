"""A request to stop is answered while the main process waits for data."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from resnet_core.distributed import signals
from resnet_core.distributed.signals import StoppedError, batches_or_stop, signal_received, stop_on_signals
from resnet_core.recipes import RECIPES, make_trainer
from resnet_core.train import TrainConfig


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(signals, "SECONDS_FOR_DATA", 0.2)


def stopped_soon(number=signal.SIGTERM):
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A shell lets its background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def endless():
    yield 1
    time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_batch_that_does_not_come_is_not_waited_for_after_a_stop(number):
    before = signal.getsignal(number), signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with stop_on_signals():
        batches = batches_or_stop(endless())
        assert next(batches) == 1
        stopped_soon(number)
        with pytest.raises(StoppedError, match="stopped while it waited for data that did not come"):
            next(batches)
        assert signal_received()
    assert time.monotonic() - began < 30
    assert (signal.getsignal(number), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_batch_that_comes_late_is_used_and_a_long_step_is_not_interrupted():
    def late():
        time.sleep(0.15)
        yield 1

    with stop_on_signals():
        stopped_soon()
        assert list(batches_or_stop(late())) == [1]
        time.sleep(0.5)  # a step: the wait is over
        assert signal_received()


def test_a_ctrl_c_that_nobody_handles_is_left_as_it_is():
    stopped_soon(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        list(batches_or_stop(endless()))


def test_a_single_process_saves_what_it_has_done_before_the_batch_that_did_not_come(tmp_path):
    recipe = replace(RECIPES["digits"], train=TrainConfig(epochs=3))
    trainer = make_trainer(recipe, folder=tmp_path, stop_asked=signal_received)
    real = trainer.train_loader.epoch

    def stuck(epoch, start=0):
        for position, batch in enumerate(real(epoch, start=start)):
            if position == 2:
                stopped_soon()
                time.sleep(60)
            yield batch

    trainer.train_loader.epoch = stuck
    with stop_on_signals(), pytest.raises(StoppedError, match=r"stopped after step 2 of 66, saved; the same command"):
        trainer.fit()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
