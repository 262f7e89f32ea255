"""``sciml audit`` finds each fault that is put into a store, names its records, and finds none in clean data."""

import json

import numpy as np
import pytest

from sciml.cli import main
from sciml.data.store import StoreWriter
from sciml.ingest.findings import audit, shared_records
from tests.data.examples import jet, molecule
from tests.small import molecules_store


def clean(index: int) -> dict:
    """A molecule without a net force, whose energy is its composition's and a little more."""
    record = molecule(6, seed=index)
    record["forces"] = record["forces"] - record["forces"].mean(axis=0)
    rng = np.random.default_rng(index)
    record["energy"] = -10.0 * float(record["types"].sum()) + 0.01 * rng.normal()
    return {**record, "group": f"run{index % 5}"}


def store_of(path, records):
    with StoreWriter(path, "materials", "t") as writer:
        for record in records:
            writer.add(record)
    return writer.close()


def found(store) -> dict:
    return {(finding.check, finding.level): finding for finding in audit(store)}


def test_clean_data_have_no_findings(tmp_path):
    assert audit(store_of(tmp_path / "s", [clean(index) for index in range(30)])) == []


def broken(name: str) -> list[dict]:
    records = [clean(index) for index in range(30)]
    last = records[-1]
    if name == "energy":
        last["energy"] += 300.0
    elif name == "force":
        last["forces"][:2] += np.array([[80.0, 0, 0], [-80.0, 0, 0]])
    elif name == "net force":
        last["forces"] += 0.5
    elif name == "overlap":
        last["positions"][1] = last["positions"][0] + [0.2, 0.0, 0.0]
    elif name == "copy":
        records.append({**last, "id": "copy"})
    elif name == "contradiction":
        records.append({**last, "id": "copy", "energy": last["energy"] + 1.0})
    elif name == "refused":
        records.append({**last, "id": "bad", "types": np.full(6, 200)})
    return records


@pytest.mark.parametrize(
    ("name", "check", "level", "record"),
    [
        ("energy", "energy", "warning", "molecule#29"),
        ("force", "forces", "warning", "molecule#29"),
        ("net force", "forces", "warning", "molecule#29"),
        ("overlap", "geometry", "warning", "molecule#29"),
        ("copy", "duplicates", "warning", "molecule#29 = copy"),
        ("contradiction", "duplicates", "error", "molecule#29 = copy"),
        ("refused", "quarantine", "warning", "bad"),
    ],
)
def test_each_fault_is_found_and_its_record_named(tmp_path, name, check, level, record):
    findings = found(store_of(tmp_path / "s", broken(name)))
    assert (check, level) in findings, findings
    assert findings[check, level].records == [record]


def test_wrong_units_and_changed_files_are_errors(tmp_path, capsys):
    records = [clean(index) for index in range(20)]
    for record in records:
        record["positions"] = record["positions"] / 10  # nm
    store = store_of(tmp_path / "s", records)
    assert ("units", "error") in found(store)
    shard = store.path / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    assert ("files", "error") in found(store)
    assert main(["audit", f"source={store.path}", f"output={tmp_path / 'found.json'}"]) == 1
    assert "error    files" in capsys.readouterr().out
    content = json.loads((tmp_path / "found.json").read_text())
    assert {"files", "units"} <= {finding["check"] for finding in content["findings"]}


def test_classes_without_records_and_with_few(tmp_path):
    with StoreWriter(tmp_path / "s", "hep", "t", metadata={"classes": ["qcd", "top", "w", "z", "h"]}) as writer:
        for index in range(40):
            writer.add({**jet(seed=index), "label": 0 if index < 35 else 1})
    texts = [finding.text for finding in audit(writer.close()) if finding.check == "classes"]
    assert texts == ["3 of 5 classes have no record: w, z, h", "classes with fewer than 10 records: top (5)"]


def test_records_and_trajectories_on_two_sides(tmp_path):
    records = [clean(index) for index in range(20)]
    apart = store_of(tmp_path / "a", [record for record in records if record["group"] != "run0"])
    other = store_of(tmp_path / "b", [record for record in records if record["group"] == "run0"])
    assert shared_records(apart, other) == []
    mixed = store_of(tmp_path / "c", [*records[:5], {**clean(40), "id": "new", "group": "run1"}])
    leaks = shared_records(mixed, apart)
    assert [leak.level for leak in leaks] == ["error", "error"]
    assert "4 records are also in" in leaks[0].text
    assert "new" in leaks[1].records
    assert main(["audit", f"source={mixed.path}", f"against={apart.path}"]) == 1


def test_embedded_style_stores_pass_the_verb(tmp_path, capsys):
    store = molecules_store(tmp_path / "s")
    assert main(["audit", f"source={store.path}"]) in (0, 1)
    assert "errors" in capsys.readouterr().out
