"""Every generator comes back to where it was."""

import random

import numpy as np
import torch

from sciml.train.rng import generator_states, restore_generators, seed_rank

CPU = torch.device("cpu")


def drawn() -> list[float]:
    """Numbers of every generator, an odd number of normal ones: those keep a second in store."""
    numpy = [float(np.random.normal()), float(np.random.random())]  # noqa: NPY002
    return [random.random(), random.gauss(0, 1), *numpy, *torch.rand(3).tolist(), float(torch.randn(()))]


def test_generators_go_on_as_if_nothing_had_been(tmp_path):
    drawn()
    torch.save(generator_states(CPU), tmp_path / "states")
    expected = drawn()
    seed_rank(5, 1, 2)
    assert drawn() != expected
    restore_generators(torch.load(tmp_path / "states", weights_only=True), CPU)
    assert drawn() == expected


def test_new_ranks_are_seeded_apart():
    found = []
    for arguments in ((0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 1, 1), (0, 1, 1)):
        seed_rank(*arguments)
        found.append(drawn())
    assert found[0] == found[-1]
    assert len({tuple(numbers) for numbers in found}) == 4
