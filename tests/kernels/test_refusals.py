"""Every tensor that any operation takes: of another shape, dtype or device it is refused by name, before a launch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sciml_kernels
from sciml_kernels import Edges, Waves, ewald_reciprocal_energy
from tests.kernels import operations
from tests.kernels.operations import EDGES, ENDS, GRAPH, LATTICE, NODES, WAVES, zeros

OPERATIONS = {**operations.OPERATIONS, "half_space": ({"cell": LATTICE}, {"cutoff": 7.0})}
ARGUMENTS = [(operation, name) for operation, (tensors, _) in OPERATIONS.items() for name in tensors]
ROWS_OF_ANYTHING = {("segment_sum", "values"), ("remove_net_force", "forces"), ("segment_expand", "values")}
ANYTHING = {("silu", "x")}
ANY_NUMBER = {
    ("edge_embedding", "vectors"), ("spherical_harmonics", "vectors"), ("degree_norm", "x"),
    ("degree_linear", "weights"), ("symmetric_contraction", "weights"), ("pair_features", "spurions"),
    ("half_space", "cell"),
}  # fmt: skip


def call(operation: str, **changed: Tensor) -> None:
    tensors, others = OPERATIONS[operation]
    function: Callable[..., object] = getattr(sciml_kernels, operation)
    function(**{**tensors, **others, **changed})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_right_is_taken(operation: str) -> None:
    call(operation)


@pytest.mark.parametrize(("operation", "name"), ARGUMENTS)
def test_lists(operation: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*: found list, expected Tensor"):
        call(operation, **{name: OPERATIONS[operation][0][name].tolist()})


@pytest.mark.parametrize(("operation", "name"), ARGUMENTS)
def test_other_shapes(operation: str, name: str) -> None:
    tensor = OPERATIONS[operation][0][name]
    longer = torch.cat([tensor, tensor[:1]])
    wrong = [tensor.new_zeros(()), tensor.new_zeros((1, 1, 1, *tensor.shape)), longer]
    if (operation, name) in ROWS_OF_ANYTHING:
        wrong = [wrong[0], longer]
    if (operation, name) in ANY_NUMBER:
        wrong = wrong[:2]
    if (operation, name) in ANYTHING:
        wrong = []
    for other in wrong:
        with pytest.raises(ValueError, match=r"^\w+: found ") as caught:
            call(operation, **{name: other})
        found = str(caught.value).split(":")[0]
        if other is longer:  # of another length than the rest: either may be named
            assert found in (*OPERATIONS[operation][0], "pairs"), caught.value
        else:
            assert found == name, caught.value


def mixed(changed: str) -> list[tuple[str, str]]:
    """The arguments that have something to differ from; `changed` is "dtype" or "device"."""
    found = []
    for operation, name in ARGUMENTS:
        tensors = OPERATIONS[operation][0]
        kind = tensors[name].is_floating_point()
        alike = [key for key, tensor in tensors.items() if key != name and tensor.is_floating_point()]
        if (alike or not kind) if changed == "dtype" else len(tensors) > 1:
            found.append((operation, name))
    return found


def refused(operation: str, name: str, wrong: Tensor) -> None:
    """By the name of the tensor; where it is the first one, the others may be those that differ."""
    with pytest.raises(ValueError, match=r"^\w+: found ") as caught:
        call(operation, **{name: wrong})
    first = next(iter(OPERATIONS[operation][0]))
    assert name == first or str(caught.value).startswith(f"{name}:"), caught.value


@pytest.mark.parametrize(("operation", "name"), mixed("dtype"))
def test_mixed_dtypes(operation: str, name: str) -> None:
    tensor = OPERATIONS[operation][0][name]
    refused(operation, name, tensor.to(torch.float64 if tensor.is_floating_point() else torch.int32))


@pytest.mark.parametrize(("operation", "name"), mixed("device"))
def test_mixed_devices(operation: str, name: str) -> None:
    refused(operation, name, OPERATIONS[operation][0][name].to("meta"))


@pytest.mark.parametrize(
    ("operation", "name"),
    [("conv", "edges"), ("conv_radial", "edges"), ("pair_features", "pairs"), ("coulomb_pairs", "pairs")],
)
def test_edges_of_another_device_or_number_of_senders(operation: str, name: str) -> None:
    elsewhere = Edges(GRAPH.senders.to("meta"), GRAPH.receivers.to("meta"), NODES, validate=False)
    with pytest.raises(ValueError, match=rf"^{name}: found on meta, expected on cpu as "):
        call(operation, **{name: elsewhere})
    with pytest.raises(ValueError, match=r"^\w+: found "):
        call(operation, **{name: Edges(GRAPH.senders, GRAPH.receivers, NODES, NODES + 1)})


def test_rows_at_the_ends_of_edges() -> None:
    for take in (GRAPH.at_senders, GRAPH.at_receivers):
        assert take(zeros(NODES, 2)).shape == (EDGES, 2)
        for wrong in (zeros(NODES - 1, 2), zeros()):
            with pytest.raises(ValueError, match=r"^values: found shape .*, expected \(5, \.\.\.\)"):
                take(wrong)
        with pytest.raises(ValueError, match="^values: found on meta, expected on cpu as the edges"):
            take(zeros(NODES, 2).to("meta"))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_species_without_weights(backend: str) -> None:
    tensors, others = OPERATIONS["symmetric_contraction"]
    for species in (-1, 2):
        with pytest.raises(ValueError, match=rf"^species: found .*{species}.*, expected within 0\.\.1"):
            wrong = torch.tensor([0, 1, 0, species, 1])
            sciml_kernels.symmetric_contraction(**{**tensors, "species": wrong}, **others, backend=backend)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_integers_are_refused(operation: str) -> None:
    name, tensor = next((key, one) for key, one in OPERATIONS[operation][0].items() if one.is_floating_point())
    with pytest.raises(ValueError, match=r"^\w+: found torch\.(int64|float32), expected "):
        call(operation, **{name: tensor.long()})


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("operation", "name"),
    [(operation, name) for operation, name in ARGUMENTS if OPERATIONS[operation][0][name] is ENDS],
)
def test_pointers_that_do_not_fit(operation: str, name: str, backend: str) -> None:
    """On a CPU whoever computes: the definition would give numbers, or an error that names nothing."""
    tensors, others = OPERATIONS[operation]
    for wrong in ([0, 2, NODES + 1], [1, 2, NODES], [0, NODES + 1, NODES]):
        with pytest.raises(ValueError, match=rf"^{name}: found .*, expected ascending from 0 to {NODES}"):
            getattr(sciml_kernels, operation)(**{**tensors, name: torch.tensor(wrong)}, **others, backend=backend)


@pytest.mark.parametrize(
    ("waves", "message"),
    [
        ([[1, 0, 0]], "^waves: found list, expected Waves"),
        (Waves(torch.ones(EDGES, 2), WAVES), r"^waves\.indices: found shape \(7, 2\), expected \(any, 3\)"),
        (Waves(torch.ones(EDGES, 3, device="meta"), WAVES), r"^waves\.indices: found on meta, expected on cpu as"),
        (Waves(torch.ones(EDGES, 3), WAVES + 1), r"^waves\.pointers: found .*, expected ascending from 0 to 7"),
        (Waves(torch.ones(EDGES, 3), torch.tensor([0, EDGES])), r"^waves\.pointers: found shape \(2,\), expected \(3"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_waves_that_do_not_fit(waves: Waves, message: str, backend: str) -> None:
    tensors, others = OPERATIONS["ewald_reciprocal_energy"]
    with pytest.raises(ValueError, match=message):
        ewald_reciprocal_energy(**{**tensors, **others, "waves": waves}, backend=backend)


@pytest.mark.parametrize(("name", "given"), [("splitting", 0.0), ("splitting", float("inf")), ("cutoff", float("nan"))])
def test_lengths_that_are_none(name: str, given: float) -> None:
    operation = "half_space" if name == "cutoff" else "ewald_reciprocal_energy"
    tensors, others = OPERATIONS[operation]
    with pytest.raises(ValueError, match=f"^{name}: found {given}, expected a positive number"):
        getattr(sciml_kernels, operation)(**{**tensors, **others, name: given})
