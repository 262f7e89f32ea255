"""The benchmark problems: what is computed, on which sizes, and the definition that every answer is held against.

A problem travels to the process that runs it as plain data (`Problem.describe`), because the environment of a peer has
neither this package nor its e3nn; `Instance` makes the same tensors of it everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

HARMONICS = "0e+1o+2e+3o"
SIZES = {"cpu": (128, 6600), "gpu": (5000, 250_000), "gate": (32, 660), "tiny": (5, 24)}  # nodes, edges
LMAX, BASIS, SPECIES, CORRELATION = 3, 8, 10, 3


@dataclasses.dataclass(frozen=True)
class Problem:
    """One line of the registry.

    Attributes:
        name: whose shape it is.
        operation: "conv", "radial", "symmetric", "harmonics" or "embedding".
        irreps: of node features, edge features and output.
        summed: paths to the same output are added.
        hidden: features of the radial network.
        sizes: nodes and edges where they are not those of `SIZES`.
    """

    name: str
    operation: str
    irreps: tuple[str, str, str] = ("", "", "")
    summed: bool = False
    hidden: int = 0
    sizes: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def peers(self) -> tuple[str, ...]:
        """The providers that have this operation, ours first."""
        if self.operation == "conv" and not self.summed:
            return ("ours", "e3nn", "cuequivariance", "openequivariance")
        return {
            "radial": ("ours", "unfused"),
            "symmetric": ("ours", "mace"),
            "harmonics": ("ours", "e3nn"),
            "embedding": ("ours", "definition"),
        }[self.operation]

    def spec(self) -> Any:
        """The spec of a convolution or of a symmetric contraction."""
        from sciml_kernels import Spec, SymmetricSpec

        if self.operation == "symmetric":
            return SymmetricSpec(self.irreps[0], self.irreps[2], CORRELATION)
        return (Spec.summed if self.summed else Spec.separate)(*self.irreps)

    def describe(self, size: str) -> dict[str, Any]:
        """Everything that a process needs to know, as plain data: see `Instance`."""
        nodes, edges = self.sizes.get(size, SIZES[size])
        plain = {"operation": self.operation, "nodes": nodes, "edges": edges, "irreps": self.irreps, "key": ""}
        if self.operation in ("conv", "radial"):
            spec = self.spec()
            paths = [(path.x, path.y, path.out) for path in spec.paths]
            irreps = [str(part) for part in (spec.irreps_x, spec.irreps_y, spec.irreps_out)]
            dims = [(nodes, spec.dim_x), (edges, spec.dim_y)]
            plain |= {"key": spec.key, "paths": paths, "irreps": irreps, "out": (nodes, spec.dim_out)}
            if self.operation == "conv":
                return plain | {"shapes": [*dims, (edges, spec.dim_w)], "first": [0, 1, 2]}
            shapes = [*dims, (edges, self.hidden), (self.hidden, spec.dim_w)]
            return plain | {"shapes": shapes, "first": [0, 1, 2], "scales": [1, 1, 1, self.hidden**-0.5]}
        if self.operation == "symmetric":
            spec = self.spec()
            x, out = (
                (nodes, irreps.dim // spec.channels, spec.channels) for irreps in (spec.irreps_x, spec.irreps_out)
            )
            weights = (SPECIES, len(spec.couplings), spec.channels)
            return plain | {"shapes": [x, weights], "first": [0], "out": out}
        width = (LMAX + 1) ** 2 + (BASIS + 1) * (self.operation == "embedding")
        return plain | {"shapes": [(edges, 3)], "first": [0], "out": (edges, width)}


class Instance:
    """The tensors of a described problem.

    Attributes:
        arguments: inputs of the operation in our layout; their derivatives are asked for.
        first: which of them the backward pass goes to, as forces need it; the double backward goes to all.
        senders, receivers, species: integers, sorted by receiver.
    """

    def __init__(
        self, plain: dict[str, Any], device: str, dtype: torch.dtype = torch.float32, everywhere: bool = True
    ) -> None:
        """The same numbers `everywhere`, by the CPU's generator; else by that of the device, which is faster."""
        self.plain, self.device, self.dtype = plain, device, dtype
        self.nodes, edges, self.first = plain["nodes"], plain["edges"], plain["first"]
        self.generator = torch.Generator("cpu" if everywhere else device).manual_seed(0)
        scales = plain.get("scales", [1.0] * len(plain["shapes"]))
        self.arguments = [scale * self.random(shape) for shape, scale in zip(plain["shapes"], scales)]
        if plain["operation"] in ("harmonics", "embedding"):  # as long as edges in units of the cutoff
            directions = torch.nn.functional.normalize(self.arguments[0])
            self.arguments = [0.4 * directions + 0.05 * self.arguments[0]]
        receivers, senders, self.species = (
            self._integers(most, count)
            for most, count in ((self.nodes, edges), (self.nodes, edges), (SPECIES, self.nodes))
        )
        self.receivers, self.senders = receivers.sort().values, senders

    def random(self, shape: Sequence[int]) -> Tensor:
        """The next normal numbers of its generator."""
        numbers = torch.randn(tuple(shape), generator=self.generator, device=self.generator.device)
        return numbers.to(self.device, self.dtype)

    def _integers(self, most: int, count: int) -> Tensor:
        found = torch.randint(most, (count,), generator=self.generator, device=self.generator.device)
        return found.to(self.device)


PROBLEMS = {
    "1": Problem("MACE-medium", "conv", ("128x0e+128x1o", HARMONICS, HARMONICS)),
    "2": Problem("MACE-large", "conv", ("128x0e+128x1o+128x2e", HARMONICS, HARMONICS)),
    "3": Problem(
        "NequIP",
        "conv",
        ("+".join(f"64x{l}{p}" for l in range(4) for p in "oe"), HARMONICS, HARMONICS),  # noqa: E741
    ),
    "4": Problem("SevenNet l3i5", "conv", ("128x0e+64x1e+32x2e+32x3e", "0e+1e+2e+3e", "0e+1e+2e+3e")),
    "5": Problem("symmetric contraction", "symmetric", ("128x0e+128x1o", "", "0e+1o")),
    "6": Problem("spherical harmonics", "harmonics", sizes={"cpu": (1, 250_000), "gpu": (1, 250_000)}),
}
"""The six problems of the project."""

FUSIONS = {
    "1-radial": Problem("MACE-medium", "radial", PROBLEMS["1"].irreps, hidden=64),
    "small-radial": Problem(
        "32 channels, lmax 2", "radial", ("32x0e+32x1o+32x2e", "0e+1o+2e", "0e+1o+2e"), True, 32,
        {"cpu": (320, 4000), "gpu": (320, 4000)},
    ),
    "more-radial": Problem(
        "32 channels, lmax 2, more edges", "radial", ("32x0e+32x1o+32x2e", "0e+1o+2e", "0e+1o+2e"), True, 32,
        {"cpu": (640, 13000), "gpu": (640, 13000)},
    ),
    "embedding": Problem("harmonics, radial basis and envelope", "embedding"),
}  # fmt: skip
"""Operations that we have in one kernel, beside the same in several."""

REGISTRY = PROBLEMS | FUSIONS


def function(instance: Instance, backend: str) -> Callable[..., Tensor]:
    """The operation of sciml_kernels on tensors like the arguments of the instance."""
    from sciml_kernels import (
        Edges,
        Spec,
        SymmetricSpec,
        conv,
        conv_radial,
        edge_embedding,
        spherical_harmonics,
        symmetric_contraction,
    )

    plain = instance.plain
    if plain["operation"] == "harmonics":
        return lambda vectors: spherical_harmonics(vectors, LMAX, backend=backend)
    if plain["operation"] == "embedding":
        return lambda vectors: torch.cat(edge_embedding(vectors, LMAX, BASIS, backend=backend), 1)
    if plain["operation"] == "symmetric":
        contraction = SymmetricSpec(plain["irreps"][0], plain["irreps"][2], CORRELATION)
        return lambda x, weights: symmetric_contraction(x, weights, instance.species, contraction, backend)
    graph, spec = Edges(instance.senders, instance.receivers, instance.nodes), Spec.from_key(plain["key"])
    operation = conv if plain["operation"] == "conv" else conv_radial
    return lambda *leaves: operation(*leaves, graph, spec, backend)


def definition(instance: Instance) -> Callable[..., Tensor]:
    """The plain-torch definition."""
    return function(instance, "reference")
