"""Signals, without a run."""

import os
import signal

import pytest

from sciml.train.preempt import Interruption


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
