"""Repulsion and dispersion: published formulas at single points, tables, and smooth ends."""

import math

import pytest
import torch
from ase.calculators.vdwcorrection import vdWDB_Grimme06jcc
from ase.data import atomic_numbers

from sciml.errors import UserError
from sciml.physics.priors import _dispersion_table, dispersion, dispersion_elements, nuclear_repulsion

DOUBLE = torch.float64


def at(distance: float, *numbers: int) -> list[torch.Tensor]:
    return [torch.tensor([distance], dtype=DOUBLE), *(torch.tensor([number]) for number in numbers)]


def test_the_repulsion_is_that_of_ziegler_biersack_and_littmark():
    """Far below its cutoff, where the envelope is one: two silicon atoms at 0.2 Å."""
    length = 0.8854 * 0.529177210903 / (2 * 14**0.23)
    x = 0.2 / length
    screened = 0.18175 * math.exp(-3.1998 * x) + 0.50986 * math.exp(-0.94229 * x)
    screened += 0.28022 * math.exp(-0.4029 * x) + 0.02817 * math.exp(-0.20162 * x)
    expected = 14.399645478 * 14 * 14 / 0.2 * screened
    found = nuclear_repulsion(*at(0.2, 14, 14), torch.tensor([20.0], dtype=DOUBLE))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(nuclear_repulsion(*at(0.2, 14, 0), torch.tensor([20.0], dtype=DOUBLE))) == 0.0


def test_dispersion_is_that_of_grimme():
    """Two carbon atoms at 4 Å: C6 = 1.75 J nm^6 / mol, R0 = 1.452 Å, s6 = 0.75."""
    c6 = 1.75 * 1e6 / 96485.33212
    expected = -0.75 * c6 / 4.0**6 / (1 + math.exp(-20 * (4.0 / 2.904 - 1)))
    assert float(dispersion(*at(4.0, 6, 6), radius=12.0, scale=0.75)) == pytest.approx(expected, rel=1e-9)


def test_dispersion_of_an_element_without_coefficients_is_refused_by_name():
    with pytest.raises(UserError, match="dispersion: found Au in a structure, expected elements up to Xe"):
        dispersion(*at(3.0, 6, 79), 10.0, 1.0)


def test_the_table_of_dispersion_is_that_of_the_simulation_environment():
    """ASE has the same table, with one entry for Y to Cd."""
    c6, radii = _dispersion_table()
    joule = 1e6 / 96485.33212
    assert dispersion_elements() == set(range(1, 55))
    for symbol, (coefficient, radius) in vdWDB_Grimme06jcc.items():
        for number in range(39, 49) if symbol == "Y-Cd" else [atomic_numbers[symbol]]:
            assert float(c6[number]) == pytest.approx(coefficient * joule, rel=1e-9)
            assert float(radii[number]) == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("name", ["repulsion", "dispersion"])
def test_they_end_smoothly(name):
    """Value, first and second derivative vanish at the end, as the third power of the distance to it."""

    def energy(distance: torch.Tensor) -> torch.Tensor:
        numbers = torch.tensor([29]), torch.tensor([8])
        if name == "repulsion":
            return nuclear_repulsion(distance, *numbers, torch.tensor([2.0], dtype=DOUBLE))
        return dispersion(distance, *numbers, 2.0, 1.0)

    values = []
    for gap in (2e-3, 1e-3):
        distance = torch.tensor([2.0 - gap], dtype=DOUBLE).requires_grad_()
        value = energy(distance)
        (first,) = torch.autograd.grad(value, distance, create_graph=True)
        (second,) = torch.autograd.grad(first, distance)
        values.append([float(x.detach()) for x in (value, first, second)])
    for before, after, power in zip(*values, (3, 2, 1), strict=True):
        assert before / after == pytest.approx(2.0**power, rel=0.05)
    beyond = torch.tensor([2.0 + 1e-9], dtype=DOUBLE).requires_grad_()
    value = energy(beyond)
    assert float(value.detach()) == 0.0
    assert float(torch.autograd.grad(value, beyond)[0]) == 0.0
    assert float(energy(torch.tensor([1.5], dtype=DOUBLE))) * (1 if name == "repulsion" else -1) > 0
