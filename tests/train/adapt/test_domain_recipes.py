"""The recipes of fine-tuning for jets and proteins as runs, on a few embedded records, and affinities of complexes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sciml
from sciml.config import configure
from sciml.data.store import Store, Subset
from sciml.errors import UserError
from sciml.ingest.split import copy_records
from sciml.verbs.train import train

SAMPLES = Path(sciml.__file__).parent / "data" / "samples"
TYPES = ("ALA", "GLY", "SER", "THR", "VAL", "LEU", "TRP", "PRO", "LYS", "ASP")  # sequences that are not related
SHORT = (
    *("logger=disabled", "trainer.progress=false", "trainer.log_every=1", "trainer.max_time=null"),
    *("heads.energy.hidden=8", "heads.jet_class.hidden=8", "heads.residue_type.hidden=8"),  # as in the package
    *("trainer.max_steps=3", "optimizer.warmup_steps=1", "adapt.retained.records=2", "uncertainty=8"),
)


def few(folder, name: str, records: int, first: int = 0) -> str:
    """A store of some embedded records, every seventh of them, so that jets of all classes are there."""
    store = Store(SAMPLES / name)
    chosen = range(first, first + 7 * records, 7)
    return str(copy_records(Subset(store, list(chosen)), folder / f"{name}-{first}", {}).path)


def finetune(workplace, recipe: str, *words: str) -> Path:
    """Start the recipe from the package of ``workplace``; the folder of the run."""
    run = workplace / "tuned"
    words = (f"experiment={recipe}", f"init={workplace / 'run'}", f"run_dir={run}", *SHORT, *words)
    assert train(configure("train", words)) == 0
    return run


def results(run: Path) -> dict:
    return json.loads((run / "evaluation" / "metrics.json").read_text())["targets"]


def losses(run: Path, target: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[f"train/{target}"] for line in lines if f"train/{target}" in line]


def test_a_base_becomes_a_tagger_of_embedded_jets(workplace):
    words = (f"train={few(workplace, 'jets', 24)}", f"test={few(workplace, 'jets', 12, first=3)}")
    run = finetune(workplace, "finetune_hep", *words, "data.val_fraction=0.2", "data.batch.jets.max_graphs=4")
    assert len(losses(run, "label")) == 3
    assert np.isfinite(losses(run, "label")).all()
    package = sciml.load(run)
    assert set(package.config["model"]["context"]["classes"]) == {"qcd", "top", "w", "z"}  # those of the base, and z
    assert results(run)["label"]["count"] == 12
    told = json.loads((run / "evaluation" / "adaptation.json").read_text())
    assert any(row["part"] == "new" and row["measure"] == "label cross-entropy" for row in told)


@pytest.mark.parametrize("weights", [None, [1.0] * 19 + [2.0]])
def test_a_base_learns_the_residue_types_of_embedded_peptides(workplace, weights):
    words = (f"train={few(workplace, 'peptides', 8)}", f"test={few(workplace, 'peptides', 4, first=3)}")
    weighted = () if weights is None else (f"objective.residue_types.class_weights={weights}",)
    run = finetune(workplace, "finetune_biology", *words, "data.val_fraction=0.25", *weighted)
    assert len(losses(run, "residue_types")) == 3
    assert np.isfinite(losses(run, "residue_types")).all()
    assert 0.0 <= results(run)["residue_types"]["recovery"] <= 1.0
    before, after = (load_file(path / "package" / "weights.safetensors") for path in (workplace / "run", run))
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert any(name.startswith("backbone.") for name in moved)
    assert any(name.startswith("heads.residue_type") for name in moved)
    assert not any(name.startswith(("heads.energy.readout", "heads.jet_class")) for name in moved)


def test_class_weights_of_another_number_are_refused(workplace):
    words = (f"train={few(workplace, 'peptides', 8)}", "objective.residue_types.class_weights=[1.0,2.0]")
    with pytest.raises(UserError, match="objective.residue_types.class_weights: found 2, expected 20 weights"):
        finetune(workplace, "finetune_biology", *words, "data.val_fraction=0.25")
    assert not (workplace / "tuned" / "config.yaml").exists()  # refused before training


def write_complex(path: Path, seed: int) -> None:
    """A chain of four residues of one type, its backbone alone, and a ring of six atoms beside it."""
    rng = np.random.default_rng(seed)
    places = {"N": (0.0, 0.0, 0.0), "CA": (1.46, 0.0, 0.0), "C": (2.5, 0.5, 0.0), "O": (2.5, 1.7, 0.0)}
    atoms = [
        ("ATOM  ", name, TYPES[seed], number, np.array(place) + [3.8 * number, 0, 0] + 0.05 * rng.normal(size=3))
        for number in range(1, 5)
        for name, place in places.items()
    ]
    ring = [[1.4 * np.cos(turn) + 9, 1.4 * np.sin(turn) + 6, 0] for turn in np.arange(6) * np.pi / 3]
    atoms += [("HETATM", f"C{i}", "LIG", 9, np.array(at) + rng.normal(size=3) / 9) for i, at in enumerate(ring, 1)]
    lines = [
        f"{kind}{serial:5d}  {name:<3} {residue} A{number:4d}    {at[0]:8.3f}{at[1]:8.3f}{at[2]:8.3f}  1.00  0.00"
        f"          {name[0]:>2}"
        for serial, (kind, name, residue, number, at) in enumerate(atoms, start=1)
    ]
    path.write_text("\n".join([*lines, "END", ""]))


@pytest.mark.parametrize("kind", ["residues", "atoms"])
def test_affinities_of_complexes_are_regressed_from_their_table(workplace, kind):
    """Graphs of atoms have the ligand."""
    pytest.importorskip("biotite", reason="biotite is not installed (sciml[bio])")
    rows = ["structure,ligand,affinity"]
    for index in range(len(TYPES)):
        write_complex(workplace / f"{index}.pdb", index)
        rows.append(f"{index}.pdb,LIG,{5 + 0.3 * index}")
    (workplace / "complexes.csv").write_text("\n".join([*rows, ""]))
    head = f"heads.affinity={{name: target, kind: {kind}, unit: pK, hidden: 8}}"
    loss = "objective.others.affinity={weight: 1.0, loss: huber}"
    words = (
        f"train={workplace / 'complexes.csv'}",
        head,
        loss,
        "data.val_fraction=0.3",
        f"data.bins_per_step.{kind}=1",
    )
    run = finetune(workplace, "finetune_biology", *words, "heads.residue_type=null")
    assert len(losses(run, "affinity")) == 3
    assert np.isfinite(losses(run, "affinity")).all()
    found = results(run)["affinity"]
    assert (found["unit"], np.isfinite(found["mae"])) == ("pK", True)
    assert sciml.load(run).config["model"]["heads"]["affinity"]["kind"] == kind
