"""The recipe jet_momenta, from the script that smears the embedded jets to the table of the evaluation."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sciml.config import configure
from sciml.data.store import Store
from sciml.errors import UserError
from sciml.ingest.generate.smeared_jets import write
from sciml.package import load
from sciml.physics import lorentz
from sciml.verbs.train import train
from tests.small import graph_of, jets_store, molecules_store, outputs

ROOT = Path(__file__).parent.parent.parent.parent


def test_a_few_steps_conserve_the_total_and_the_table_says_so(tmp_path, capsys):
    jets_store(tmp_path / "true", records=24)
    command = [sys.executable, str(ROOT / "scripts" / "smear_jets"), str(tmp_path / "true"), str(tmp_path / "smeared")]
    assert "24 jets; next" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    store = Store(tmp_path / "smeared")
    assert store.has("true_momenta").all()
    assert store.manifest["units"]["true_momenta"] == store.manifest["units"]["total_momentum"] == "GeV"
    overrides = [f"run_dir={tmp_path / 'run'}", "model.channels=4", "model.radial.hidden=[8]", "logger=disabled"]
    overrides += ["heads.four_momenta.hidden=8", "trainer.max_steps=4", "trainer.max_time=null"]
    overrides += ["data.val_fraction=0.2", "data.batch.jets.max_graphs=4"]
    overrides += ["trainer.progress=false", "trainer.log_every=1"]
    config = configure("train", ["experiment=jet_momenta", f"train={tmp_path / 'smeared'}", *overrides])
    assert train(config) == 0
    printed = capsys.readouterr().out
    assert re.search(r"true_momenta MAE +\S+ +\S+ \(as measured\)", printed)
    assert len(re.findall(r"relative error of (E|px|py|pz) ", printed)) == 4
    assert re.search(r"uncertainty of true_momenta: error / uncertainty \d", printed)
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["targets"]["true_momenta"]
    assert metrics["unit"] == "GeV"
    assert metrics["conservation"] < 1e-12 < metrics["baseline_conservation"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/true_momenta"] for line in lines if "train/true_momenta" in line]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    package = load(tmp_path / "run" / "package")
    record = store[0]
    found = outputs(package.model, "jets", graph_of(record, "jets", torch.float32, dataset=0, cutoff=0.9))
    total = found["true_momenta"].sum(dim=0).numpy()
    np.testing.assert_allclose(total, record["total_momentum"], rtol=0, atol=1e-12 * total[0])


def test_bringing_momenta_to_the_true_total_is_better_than_leaving_them(tmp_path):
    """What the conservation alone is worth, without a network: the energies move towards the true ones."""
    from sciml.physics.phase_space import conserving

    store = write(jets_store(tmp_path / "true", records=30).path, tmp_path / "smeared", seed=1)
    errors = []
    for record in store:
        momenta, true = (torch.tensor(record[name], dtype=torch.float64) for name in ("momenta", "true_momenta"))
        total = torch.tensor(record["total_momentum"])
        frame = lorentz.regulated(momenta.sum(dim=0), lorentz.lab_spurions()[0])
        rest = [lorentz.boost_to_rest_frame(p, frame) for p in (momenta, true, total[None])]
        index = torch.zeros(len(momenta), dtype=torch.long)
        found = conserving(rest[0][:, 1:], lorentz.mass_squared(momenta), rest[2], index)
        errors.append([float((p - rest[1]).square().sum()) for p in (rest[0], found)])
    measured, conserved = np.sum(errors, axis=0)
    assert conserved < measured


def test_what_is_no_store_of_jets_is_refused(tmp_path):
    molecules_store(tmp_path / "molecules", records=4)
    with pytest.raises(UserError, match="a store of materials found, expected jets"):
        write(tmp_path / "molecules", tmp_path / "output", 0)
