"""The one data schema: a scientific sample as a two-level graph, batched by PyTorch Geometric.

A Graph carries a fine level (atoms, particles), optionally a coarse level (residues, subjets) and graph-level
fields. Shapes below use n fine nodes, r coarse nodes, m children, E edges, F coarse edges; a batch of B graphs
concatenates along the first axis.

Fine nodes belong to coarse ones by pairs (child, parent), so a system that has no coarse nodes, such as a crystal,
batches with one that has some. A coarse node lies at the weighted mean of its children, which the model computes from
their positions.

===================  ==============  ====================================================================
field                shape           meaning
===================  ==============  ====================================================================
types                (n,)            fine node type: 0 masked, 1..118 elements, 118 + k particle kind k
positions            (n, 3)          Å for atoms; dimensionless for jets (rest-frame sphere)
scalars              (n, S)          optional invariant inputs per node
vectors              (n, V, 3)       optional vector inputs per node
children             (m,)            fine node of a pair, each at most once
parents              (m,)            coarse node of a pair, sorted
child_weights        (m,)            weight of the child in the position of its parent, above zero
child_roles          (m, V)          optional; vector v of a coarse node leads from it to the sum of role v
coarse_types         (r,)            coarse node type: 0 masked or none, 1..21 residue type + 1
coarse_scalars       (r, S)          optional invariant inputs per coarse node
coarse_senders       (F,)            edge origin on the coarse level
coarse_receivers     (F,)            edge target on the coarse level, sorted
coarse_edge_scalars  (F, P)          optional invariant inputs per coarse edge
senders              (E,)            edge origin
receivers            (E,)            edge target, sorted
shifts               (E, 3)          lattice shifts in cells; vector = r[sender] - r[receiver] + shifts @ cell
edge_scalars         (E, P)          optional invariant inputs per edge
cell                 (1, 3, 3)       rows are lattice vectors in Å, zero where not periodic
pbc                  (1, 3)          periodic directions
splitting, waves     (1,), (W, 3)    of an Ewald sum, and pairs beyond the edges, where a model needs them:
far_senders, ...     (P,)            made and explained in :mod:`sciml.data.far_field`
charge, spin         (1,)            total charge (e) and multiplicity 2S + 1
momenta              (n, 4)          jets: E, px, py, pz in GeV, in the frame of the record, float64
frame                (1, 4)          jets: the momentum at rest in the frame of positions and vectors, GeV, float64
total_momentum       (1, 4)          jets: what regressed momenta sum to, GeV, float64
domain, dataset      (1,)            index in DOMAINS; index of the level of theory in the model's table
energy               (1,)            eV (target; NaN when absent)
forces               (n, 3)          eV/Å (target)
stress               (1, 3, 3)       eV/Å^3, tensile positive (target)
label                (1,)            class (target; -1 when absent)
true_momenta         (n, 4)          GeV, in the frame of the record, float64 (target)
jet_mass, jet_pt     (1,)            jets: GeV, as measured, float64; true_mass, true_pt: the targets
residue_types        (r,)            0..19 (target; -1 when absent)
noise_level          (1,)            Å, standard deviation of the noise in the positions; 0 of a clean sample
clean_forces         (n, 3)          eV/Å before the positions were shifted, zero where unknown or clean
noise_*              (n, 3)          noise in units of its level, by kind (target; NaN in a clean sample)
masked_*             (n,)            types that were hidden, by kind (target; -1 where the type is shown)
===================  ==============  ====================================================================
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch_geometric.data import Batch, Data

DOMAINS = ("materials", "hep", "biology")
KINDS = ("atoms", "jets", "residues")
ELEMENTS = 118
PARTICLE_KINDS = ("charged hadron", "neutral hadron", "photon", "electron", "muon", "other")
NUM_TYPES = 1 + ELEMENTS + len(PARTICLE_KINDS)
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
RESIDUE_NAMES = (
    *("ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU"),
    *("MET", "ASN", "PRO", "GLN", "ARG", "SER", "THR", "VAL", "TRP", "TYR"),
)  # in the order of their one-letter codes
NUM_COARSE_TYPES = 2 + len(RESIDUES)  # masked, twenty residues, unknown


@dataclass(frozen=True)
class KindInputs:
    """Widths of the optional inputs that a kind of graph brings: S scalars, V vectors per node, P scalars per edge, on
    the fine and on the coarse level; ``coarse_types`` tells whether the types of coarse nodes are known to fine ones.
    ``type_scalars`` are the columns of the scalars that tell a node's type, and are hidden with it, as are
    ``coarse_type_scalars`` of its coarse node, whose charge and mass are those of its particles; ``of_spurions``
    {field: columns} names the inputs that time and beam directions enter.
    """

    scalars: int = 0
    vectors: int = 0
    edge_scalars: int = 0
    coarse_types: bool = False
    coarse_scalars: int = 0
    child_roles: int = 0
    coarse_edge_scalars: int = 0
    type_scalars: tuple[int, ...] = ()
    coarse_type_scalars: tuple[int, ...] = ()
    of_spurions: dict[str, tuple[int, ...]] = field(default_factory=dict)


INPUTS: dict[str, KindInputs] = {
    "atoms": KindInputs(child_roles=3),
    "jets": KindInputs(
        scalars=10,
        vectors=4,
        edge_scalars=4,
        coarse_scalars=11,
        coarse_edge_scalars=4,
        type_scalars=(7,),
        coarse_type_scalars=(7, 10),
        of_spurions={
            "scalars": (2, 3, 4, 5, 6, 9),
            "vectors": (1, 2, 3),
            "edge_scalars": (0, 1, 2),
            "coarse_scalars": (2, 3, 4, 5, 6, 9),
            "coarse_edge_scalars": (0, 1, 2),
        },
    ),
    "residues": KindInputs(scalars=4, coarse_types=True, child_roles=3),
}

LABELS = ("energy", "forces", "stress", "label", "residue_types", "true_momenta", "noise_atoms", "noise_residues")
FOUR_MOMENTA = ("momenta", "frame", "total_momentum", "true_momenta")
"""Four-vectors (E, px, py, pz) of jets. They stay float64 whatever the model's precision: boosts lose digits."""
_FINE_INDICES = {"senders", "receivers", "children", "far_senders", "far_receivers"}
_COARSE_INDICES = {"parents", "coarse_senders", "coarse_receivers"}


class Graph(Data):
    """One sample; see the module's table for the fields. Batched with :func:`collate`."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Offset indices by the number of nodes of their level."""
        if key in _FINE_INDICES:
            return self.types.shape[0]
        return self.coarse_types.shape[0] if key in _COARSE_INDICES else 0

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Every field concatenates along its first axis."""
        return 0


def collate(graphs: Iterable[Graph]) -> Batch:
    """Batch graphs of one kind. Adds ``batch`` (n,), ``ptr`` (B + 1,) and, with a coarse level, ``coarse_batch``
    (r,).

    Adds two plain flags too, which a GPU could only give after all that it has to do: ``has_images``, whether a graph
    is periodic in some direction, and ``has_crystals``, whether one is in all three. Every field is a tensor, so one
    concatenation each does; PyTorch Geometric's general way would take a tenth of a small model's step. Its
    ``get_example`` works on the result.
    """
    fields = [graph.to_dict() for graph in graphs]
    batch = Batch(_base_cls=Graph)
    starts: dict[tuple[int, ...], torch.Tensor] = {}
    offsets: dict[str, torch.Tensor] = {}
    slices: dict[str, torch.Tensor] = {}
    batch.ptr, batch.batch = _levels([len(one["types"]) for one in fields])
    offsets |= dict.fromkeys(_FINE_INDICES, batch.ptr[:-1])
    if "coarse_types" in fields[0]:
        coarse_ptr, batch.coarse_batch = _levels([len(one["coarse_types"]) for one in fields])
        offsets |= dict.fromkeys(_COARSE_INDICES, coarse_ptr[:-1])
    for name in (name for name in fields[0] if name != "num_nodes"):
        values = [one[name] for one in fields]
        sizes = tuple(map(len, values))
        if sizes not in starts:
            starts[sizes] = torch.tensor([0, *itertools.accumulate(sizes)])
        slices[name] = starts[sizes]
        if name in offsets:
            values = [value + start for value, start in zip(values, offsets[name].tolist())]
        batch[name] = torch.cat(values)
    batch.num_nodes = len(batch.types)
    batch.has_images = bool(batch.pbc.any())
    batch.has_crystals = bool(batch.pbc.all(dim=1).any())
    batch._num_graphs, batch._slice_dict = len(fields), slices
    batch._inc_dict = {name: offsets.get(name) for name in slices}
    return batch


def _levels(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the nodes of each graph start (B + 1,), and the graph of every node (n,)."""
    counts = torch.tensor(sizes)
    starts = torch.zeros(len(sizes) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    return starts, torch.repeat_interleave(counts)


def graph_of_rows(batch: Batch, label: torch.Tensor, level: str | None = None) -> torch.Tensor:
    """Graph index of every row of a label of ``level`` graph, fine or coarse; without it, its length has to tell."""
    sizes = {"graph": batch.num_graphs, "fine": batch.batch.shape[0]}
    found = level or next((name for name, size in sizes.items() if label.shape[0] == size), "coarse")
    if found == "graph":
        return torch.arange(batch.num_graphs, device=label.device)
    return batch.batch if found == "fine" else batch.coarse_batch


def holds_anywhere(mask: torch.Tensor) -> bool:
    """Whether a branch that serves the graphs of ``mask`` is needed.

    Always while torch compiles: a branch on data cannot be traced, and those that ask must do no harm to the others.
    """
    return torch.compiler.is_compiling() or bool(mask.any())
