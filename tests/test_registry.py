"""A distribution outside the tree adds a domain, a reader, a head, a loss and a model; built-in names stay ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sciml import registry
from sciml.errors import UserError

MODULE = '''
"""Dipoles of molecules: everything that a person may bring along."""

import json

import numpy as np
import torch

from sciml.data.records import Field
from sciml.domains.materials import graphs
from sciml.models.backbone import Backbone
from sciml.models.readout import Features, Head, pool_sum

BASE = "materials"
KINDS = ("atoms",)
FIELDS = (Field("dipole", "graph", "float32", (3,), "e Å", "target"),)
DOMAIN = "dipoles"


def graph(record, kind, cutoff, dtype=torch.float32, coarse_cutoff=None):
    """The graph of materials with one more target."""
    made = graphs.graph(record, kind, cutoff, dtype, coarse_cutoff)
    made.dipole = torch.as_tensor(np.array(record.get("dipole", [np.nan] * 3)), dtype=dtype)[None]
    return made


def counts(data, kind, indices):
    """Three components of a dipole beside the labels of materials."""
    return {**graphs.counts(data, kind, indices), "dipole": float(3 * data.has("dipole")[indices].sum())}


def sniff(path):
    return path.suffix == ".dipoles"


def read(path, options):
    """One record per line."""
    for number, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        yield {"id": f"{path.name}#{number}", "group": str(number), **{key: np.array(row[key]) for key in row}}


class DipoleHead(Head):
    """Dipole (B, 3) in e Å from charges that sum to zero."""

    kind = "atoms"
    targets = ("dipole",)

    def __init__(self, context, hidden=4):
        super().__init__(context)
        self.readout = torch.nn.Sequential(
            torch.nn.Linear(context.channels, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, 1)
        )

    def forward(self, features, batch, geometry):
        charges = self.readout(features.invariants)
        sizes = torch.bincount(batch.batch, minlength=batch.num_graphs)[:, None]
        charges = charges - (pool_sum(charges, batch.batch, batch.num_graphs) / sizes)[batch.batch]
        return {"dipole": pool_sum(charges * geometry.positions, batch.batch, batch.num_graphs)}


def quartic(prediction, target, scale=1.0):
    """A loss of one's own with an option."""
    return scale * (prediction - target) ** 4


class Doubled(Backbone):
    """A model of one's own: the backbone with a factor."""

    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def forward(self, *inputs):
        return Features(self.factor * super().forward(*inputs).fine)


class Impostor:
    """Pretends to be a part of sciml."""
'''

ENTRY_POINTS = """
[sciml.domains]
dipoles = someone_s_package
materials = someone_s_package:Impostor
[sciml.readers]
dipoles = someone_s_package
[sciml.heads]
dipole = someone_s_package:DipoleHead
energy = someone_s_package:Impostor
[sciml.losses]
quartic = someone_s_package:quartic
mse = someone_s_package:Impostor
[sciml.models]
doubled = someone_s_package:Doubled
backbone = someone_s_package:Impostor
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that stands for site-packages, with one distribution in it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "someone_s_package.py").write_text(MODULE)
    info = folder / "someone_s_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someone-s-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Two dozen water-like molecules with dipoles and no energies."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(24):
        positions = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]) + 0.05 * rng.normal(size=(3, 3))
        dipole = np.array([-0.8, 0.4, 0.4]) @ positions
        label = {"dipole": dipole.tolist()} if index else {}
        rows.append({"types": [8, 1, 1], "positions": positions.tolist(), **label})
    file = tmp_path_factory.mktemp("raw") / "water.dipoles"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = words if words[0] == sys.executable else (sys.executable, "-m", "sciml.cli", *words)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


TRAIN = (
    "model=tiny",
    "model.channels=4",
    "model.radial.hidden=[8]",
    "model.name=doubled",
    "model.options.factor=2.0",
    "heads.dipole={hidden: 5}",
    "heads.energy=null",
    "objective.others.dipole={weight: 2, loss: quartic, scale: 3.0}",
    "data.bins_per_step.jets=0",
    "trainer.max_steps=4",
    "trainer.log_every=1",
    "trainer.progress=false",
    "optimizer.warmup_steps=1",
    "logger=disabled",
    "run_dir=run",
)


@pytest.fixture(scope="module")
def trained(installed, raw, tmp_path_factory) -> Path:
    """A folder with ``run``, trained by the command line from a file of its own format."""
    folder = tmp_path_factory.mktemp("trained")
    done = run(installed, folder, "train", f"train={raw}", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "dipole MAE" in done.stdout
    return folder


def test_an_installed_distribution_brings_data_model_head_and_loss(trained):
    lines = [json.loads(line) for line in (trained / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"train/dipole", "val/dipole"} <= {key for line in lines for key in line}
    metrics = json.loads((trained / "run" / "evaluation" / "metrics.json").read_text())
    assert set(metrics["targets"]) == {"dipole"}
    config = json.loads((trained / "run" / "package" / "config.json").read_text())
    assert config["model"]["heads"] == {"dipole": {"hidden": 5}}
    assert config["model"]["backbone"]["factor"] == 2.0
    assert config["data"][0]["domain"] == "dipoles"


def test_its_target_is_evaluated_like_any_other(installed, raw, trained):
    done = run(installed, trained, "evaluate", "package=run", f"store={raw}", "output=errors")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((trained / "errors" / "metrics.json").read_text())
    assert metrics["targets"]["dipole"]["count"] == 3 * 23  # one of 24 has no label


def test_without_the_distribution_the_package_names_what_is_missing(trained, raw, tmp_path):
    refused = run(tmp_path, trained, "evaluate", "package=run", f"store={raw}")
    assert refused.returncode == 2
    assert "'doubled' is not known" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_built_in_names_cannot_be_shadowed(installed, tmp_path):
    code = (
        "from sciml import registry\n"
        "for kind, table in registry.BUILTIN.items():\n"
        "    for name in table:\n"
        "        found = registry.resolve(kind, name)\n"
        "        assert (getattr(found, '__module__', None) or found.__name__).startswith('sciml.'), (kind, name)\n"
        "assert registry.resolve('heads', 'dipole').__module__ == 'someone_s_package'\n"
        "assert registry.names('heads').count('energy') == 1\n"
    )
    done = run(installed, tmp_path, sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", sorted(registry.BUILTIN))
def test_every_built_in_name_leads_somewhere(kind):
    for name in registry.BUILTIN[kind]:
        assert registry.resolve(kind, name) is not None
        assert name in registry.names(kind)


@pytest.mark.parametrize("name", ["os:system", "sciml.package:save", "", "energy ", "__import__"])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(UserError, match="is not known; use one of denoise_atoms, denoise_residues, direct_"):
        registry.resolve("heads", name)
