"""Small models, stores and runs for tests; random systems are in ``tests.helpers``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciml import registry
from sciml.data.records import Record
from sciml.data.store import Store, StoreWriter
from sciml.graph import KINDS, Graph, collate
from sciml.models.model import Model, build_model
from tests.helpers import ELEMENTS, random_crystal, random_jet, random_molecule, random_peptide

CUTOFFS = {"atoms": 5.0, "jets": 2.5, "residues": 8.0}
COARSE_CUTOFFS = {"atoms": 7.0, "jets": 2.5, "residues": 7.0}
ALL_SCALES = {"layers": 1, "coarse_layers": 1, "layers_after": 1}
"""What makes a model of :func:`random_model` one with both levels."""
DATASETS = ("first", "second")
CLASSES = ("qcd", "top", "w")
DOMAIN_OF = {"atoms": "materials", "jets": "hep", "residues": "biology"}
LONG_RANGE = {
    "reciprocal": {"charges": 3},
    "energy": {"charges": 2, "repulsion": True, "dispersion": {"radius": 7.0, "scale": 0.75}},
}
"""Everything that reaches further than the edges, and the repulsion: options of :func:`random_model`."""
TINY = {
    "name": "backbone",
    "channels": 4,
    "layers": 2,
    "lmax_node": 1,
    "lmax_edge": 2,
    "correlation": 3,
    "radial": {"basis": 6, "hidden": [8]},
    "feed_forward": 2,
    "backend": "auto",
}


def describe_model(
    kinds: tuple[str, ...] = KINDS, energy: dict[str, Any] | None = None, **backbone: Any
) -> dict[str, Any]:
    """The description of a model of a few thousand parameters with the head of every kind; ``energy`` are further
    options of that head.
    """
    heads = {"atoms": "energy", "jets": "jet_class", "residues": "residue_type"}
    coarse = {
        "cutoffs": {kind: COARSE_CUTOFFS[kind] for kind in kinds},
        "mean_children": {kind: {"atoms": 5.0, "jets": 4.0, "residues": 4.0}[kind] for kind in kinds},
        "mean_neighbors": {kind: {"atoms": 5.0, "jets": 6.0, "residues": 5.0}[kind] for kind in kinds},
    }
    references = {name: {str(z): -0.5 * z - i for z in ELEMENTS} for i, name in enumerate(DATASETS)}
    return {
        "backbone": {**TINY, **backbone},
        "heads": {heads[kind]: {"hidden": 8, **((energy or {}) if kind == "atoms" else {})} for kind in kinds},
        "kinds": list(kinds),
        "cutoffs": {kind: CUTOFFS[kind] for kind in kinds},
        "context": {
            "datasets": list(DATASETS),
            "references": references,
            "scales": {"first": 0.7, "second": 1.9},
            "spreads": {"first": 0.05, "second": 0.3},
            "classes": list(CLASSES),
        },
        "mean_neighbors": {kind: {"atoms": 14.0, "jets": 29.0, "residues": 20.0}[kind] for kind in kinds},
        **({"coarse": coarse} if backbone.get("coarse_layers") else {}),
    }


def random_model(
    dtype: torch.dtype = torch.float64, seed: int = 0, kinds: tuple[str, ...] = KINDS, **backbone: Any
) -> Model:
    """A model in which no weight is near zero: those that begin at zero are drawn, so that every path counts.

    The weights are float32 numbers whatever ``dtype``, so models of one seed are one function in two precisions.
    """
    torch.manual_seed(seed)
    model = build_model(describe_model(kinds, **backbone))
    with torch.no_grad():
        for parameter in model.parameters():
            if float(parameter.abs().max()) == 0.0:
                parameter.normal_(std=0.3)
        if "energy" in model.heads:
            model.heads["energy"].readout[-1].weight.mul_(10.0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def graph_of(record: Record, kind: str, dtype: torch.dtype = torch.float64, dataset: int = 1, **options: Any) -> Graph:
    """The two-level graph of a record with a level of theory; ``options`` reach the domain's ``graph``.

    A record of atoms that names residues is one of biology.
    """
    domain = registry.resolve("domains", "biology" if "parent" in record and kind == "atoms" else DOMAIN_OF[kind])
    options = {"cutoff": CUTOFFS[kind], "coarse_cutoff": COARSE_CUTOFFS[kind], "dtype": dtype, **options}
    graph = domain.graph(record, kind, **options)
    graph.dataset = torch.tensor([dataset])
    return graph


def outputs(model: Model, kind: str, *graphs: Graph) -> dict[str, torch.Tensor]:
    """Predictions of a batch of graphs, detached."""
    return {name: value.detach() for name, value in model(collate([g.clone() for g in graphs]), kind).items()}


def molecules_store(path: Path, records: int = 12, dataset: str = "first", atoms: int = 6, seed: int = 0) -> Store:
    """A store of random molecules, one in four a crystal; energies and forces of a harmonic toy."""
    rng = np.random.default_rng(seed)
    with StoreWriter(path, "materials", dataset) as writer:
        for index in range(records):
            make = random_crystal if index % 4 == 3 else random_molecule
            record = make(rng, atoms=atoms)
            assert writer.add({**record, "id": f"m#{index}", "group": f"g{index}"})
    return writer.close()


def jets_store(path: Path, records: int = 12, seed: int = 0, classes: Sequence[str] = CLASSES) -> Store:
    """A store of jets of ``classes`` that differ in mass."""
    rng = np.random.default_rng(seed)
    with StoreWriter(path, "hep", "toy", metadata={"classes": list(classes)}) as writer:
        for index in range(records):
            label = index % len(classes)
            record = random_jet(rng, particles=8, mass=40.0 + 60.0 * label)
            assert writer.add({**record, "id": f"j#{index}", "group": f"j{index}", "label": label})
    return writer.close()


def peptides_store(path: Path, records: int = 8, seed: int = 0, labelled: bool = True) -> Store:
    """A store of short helices with or without energies."""
    rng = np.random.default_rng(seed)
    with StoreWriter(path, "biology", "amber") as writer:
        for index in range(records):
            record = random_peptide(rng, residues=4, labelled=labelled)
            assert writer.add({**record, "id": f"p#{index}", "group": f"p{index}"})
    return writer.close()


def train_config(folder: Path, *overrides: str, stores: tuple[str, ...] = ("molecules", "jets", "peptides")) -> Any:
    """The configuration of a short quiet run in ``folder``/run of a tiny model on the stores in ``folder``."""
    from sciml.config import configure

    return configure(
        "train",
        [
            f"train=[{','.join(str(folder / name) for name in stores)}]",
            f"run_dir={folder / 'run'}",
            "model=tiny",
            "model.channels=4",
            "model.radial.hidden=[8]",
            "heads.energy.hidden=8",
            "heads.jet_class.hidden=8",
            "heads.residue_type.hidden=8",
            "data.val_fraction=0.25",
            "data.batch.atoms.max_graphs=3",
            "data.batch.jets.max_graphs=3",
            "data.batch.residues.max_graphs=3",
            "optimizer.warmup_steps=2",
            "trainer.max_steps=6",
            "trainer.progress=false",
            "trainer.log_every=1",
            "logger=disabled",
            *overrides,
        ],
    )


def stores(folder: Path) -> Path:
    """Write the three stores of :func:`train_config`."""
    molecules_store(folder / "molecules")
    jets_store(folder / "jets")
    peptides_store(folder / "peptides")
    return folder
