"""Checkpoints of older formats, turned into the newest one step at a time.

A change of what a checkpoint holds is a new format: FORMAT grows by one, a function here turns the one before into it,
and ``sciml/doctor/faults/frozen`` keeps a run of every format that must load, resume and export (fault 17).
"""

from collections.abc import Callable
from typing import Any

FORMAT = 2

State = dict[str, Any]


def _from_1(state: State) -> State:
    """One file as Lightning laid it out: its loops are counted from the step instead, generators were not kept, and a
    validation that was due at the step had been done or was given up.
    """
    state = {key: value for key, value in state.items() if key != "loops"}
    return {**state, "validation_due": False, "ranks": []}


UPGRADES: dict[int, Callable[[State], State]] = {1: _from_1}


def upgraded(state: State, version: int) -> State:
    """The content of a checkpoint of format ``version`` as one of :data:`FORMAT`."""
    for number in range(version, FORMAT):
        state = UPGRADES[number](state)
    return state
