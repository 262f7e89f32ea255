"""Signals, without a run."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from sciml.train.preempt import Interruption, Preemption


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_dropped_is_repeated_at_the_next_batch():
    class Swallows:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)  # what is raised in here is printed and dropped

    callback, before = Interruption(), signal.getsignal(signal.SIGINT)
    callback.on_train_start(None, None)
    callback.on_train_batch_end(None, None)
    doomed = Swallows()
    del doomed
    with pytest.raises(KeyboardInterrupt):
        callback.on_train_batch_end(None, None)
    callback.on_exception(None, None, KeyboardInterrupt())
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_the_ranks_meet_counts_at_the_next_meeting(number):
    def reduce(flags, reduce_op):
        os.kill(os.getpid(), number)
        return flags

    callback = Preemption(SimpleNamespace(failed=False), SimpleNamespace())
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce, root_device=torch.device("cpu")))
    before = signal.getsignal(number)
    with callback.listening():
        assert not callback._stops(trainer)
        assert callback._stops(trainer)
    assert signal.getsignal(number) is before
