"""Which steps are left out, by their losses alone; whole runs are in tests/faults."""

from types import SimpleNamespace

import numpy as np
import pytest

from sciml.train.guard import Guard


def guard(tmp_path, window: int = 16, threshold: float = 50.0) -> Guard:
    options = SimpleNamespace(window=window, threshold=threshold, patience=3, rewinds=1)
    return Guard(options, tmp_path, SimpleNamespace(), SimpleNamespace())


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_no_number_is_objected_to_at_once(tmp_path, loss):
    assert f"the loss is {float(loss)}" in guard(tmp_path)._objection(float(loss), finite=False)
    assert "gradient" in guard(tmp_path)._objection(1.0, finite=False)


def test_a_spike_is_judged_by_a_full_window_and_never_enters_it(tmp_path):
    found = guard(tmp_path)
    losses = np.random.default_rng(0).lognormal(sigma=0.5, size=16)
    for loss in losses[:-1]:
        found.losses.append(float(loss))
    assert found._objection(1e6, True) is None
    found.losses.append(float(losses[-1]))
    assert "is a spike" in found._objection(1e6, True)
    assert found._objection(float(losses.max()), True) is None


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.7])
def test_ordinary_losses_are_no_spikes(tmp_path, sigma):
    """Log-normal losses that fall from a hundred to one: none of ten thousand."""
    found, rng = guard(tmp_path, window=128), np.random.default_rng(1)
    for step in range(10_000):
        loss = float((1.0 + 99.0 * np.exp(-step / 500)) * rng.lognormal(sigma=sigma))
        assert found._objection(loss, True) is None, (step, loss)
        found.losses.append(loss)


def test_losses_that_do_not_differ_are_no_reason_to_object(tmp_path):
    found = guard(tmp_path)
    found.losses.extend([1.0] * 16)
    assert found._objection(1.2, True) is None
    assert "is a spike" in found._objection(2.0, True)


def test_no_window_judges_no_spike(tmp_path):
    assert guard(tmp_path, window=0)._objection(1e30, True) is None


def test_the_state_comes_back(tmp_path):
    first, second = guard(tmp_path), guard(tmp_path)
    first.losses.extend([1.0, 2.0])
    first.streak, first.left_out, first.made, first.rewound = [7], 4, 9, 1
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second.losses.maxlen == 16
