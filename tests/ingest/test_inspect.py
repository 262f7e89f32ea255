"""The summary and the picture of a store."""

from types import SimpleNamespace

import pytest

from sciml.data.store import StoreWriter
from sciml.ingest.inspect import run
from tests.data.examples import crystal, jet, molecule, peptide


@pytest.mark.parametrize(
    ("domain", "make", "expected"),
    [
        ("materials", crystal, ["stress [eV/Å^3]", "per atom, less references", "bulk 6", "periodic"]),
        ("materials", molecule, ["elements", "H ", "quarantined", "1, see"]),
        ("hep", jet, ["classes", "label", "regulated"]),
        ("biology", peptide, ["residues", "residue_types"]),
    ],
)
def test_summary_and_picture(tmp_path, capsys, domain, make, expected):
    with StoreWriter(tmp_path / "s", domain, "test", metadata={"licence": "CC0"}) as writer:
        for seed in range(6):
            writer.add(make(4 + seed, seed))
        writer.add({"id": "bad"})
    assert run(SimpleNamespace(source=str(tmp_path / "s"), model=None, output=str(tmp_path / "pictures"))) == 0
    printed = capsys.readouterr().out
    for text in (*expected, "CC0", "records", "6 with"):
        assert text in printed
    assert (tmp_path / "pictures" / "histograms.png").stat().st_size > 10_000


def test_one_unlabelled_record(tmp_path, capsys):
    record = molecule(1)
    del record["energy"], record["forces"]
    with StoreWriter(tmp_path / "s", "materials", "test") as writer:
        writer.add(record)
    assert run(SimpleNamespace(source=str(tmp_path / "s"), model=None, output=str(tmp_path))) == 0
    assert "none" in capsys.readouterr().out
