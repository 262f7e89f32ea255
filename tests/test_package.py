"""A package comes back bit for bit, is written whole or not at all, and can never run code."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sciml
from sciml.errors import UserError
from sciml.files import file_sha256
from sciml.models.model import build_model
from sciml.package import FILES, load, save, to_float_dtype
from tests.helpers import random_crystal, random_jet, random_peptide
from tests.small import describe_model, graph_of, outputs, random_model

RECORDS = {"atoms": random_crystal, "jets": random_jet, "residues": random_peptide}


def write(folder: Path, seed: int = 0) -> Path:
    return save(folder, random_model(torch.float32, seed), {"model": describe_model(), "units": {}}, "# a card\n")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("packages") / "package")


@pytest.fixture
def package(original, tmp_path) -> Path:
    """A copy to damage."""
    import shutil

    return Path(shutil.copytree(original, tmp_path / "package"))


def sign(folder: Path) -> None:
    """Make the hashes fit the files, as somebody would who wants a changed package to load."""
    (folder / "hashes.json").write_text(json.dumps({name: file_sha256(folder / name) for name in FILES}))


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


@pytest.mark.parametrize("kind", RECORDS)
def test_outputs_come_back_bit_for_bit(original, kind):
    graph = graph_of(RECORDS[kind](np.random.default_rng(0)), kind, torch.float32)
    expected = outputs(random_model(torch.float32), kind, graph)
    for path in (original, str(original)):
        loaded = sciml.load(path)
        assert not loaded.model.training
        found = outputs(loaded.model, kind, graph)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_folder_stands_for_its_package(original, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "package").symlink_to(original)
    assert load(tmp_path / "run").path == tmp_path / "run" / "package"


def test_loading_in_double_precision_converts_the_parameters_alone(original):
    model = load(original, dtype=torch.float64).model
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    narrow = random_model(torch.float32)
    references = model.heads["energy"].references
    assert torch.equal(references, narrow.heads["energy"].references)
    to_float_dtype(model, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), narrow.parameters(), strict=True))


def test_weights_in_double_precision_are_read_as_they_were_written(tmp_path):
    model = random_model(torch.float32, kinds=("atoms",))
    to_float_dtype(model, torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-12
    save(tmp_path / "package", model, {"model": describe_model(kinds=("atoms",))}, "")
    loaded = load(tmp_path / "package").model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_the_folder_holds_plain_files(original):
    assert sorted(p.name for p in original.iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "hashes.json",
        "weights.safetensors",
    ]
    config = json.loads((original / "config.json").read_text())
    assert config["format"] == 1
    assert config["model"] == describe_model()
    assert list(original.parent.iterdir()) == [original]


@pytest.mark.parametrize("name", [*FILES, "hashes.json"])
def test_a_missing_file_is_named(package, name):
    (package / name).unlink()
    with pytest.raises(UserError, match="no config.json" if name == "config.json" else f"{name} is missing"):
        load(package)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_changed_byte_of_the_weights_is_refused(package, position):
    data = bytearray((package / "weights.safetensors").read_bytes())
    data[position] ^= 1
    (package / "weights.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.safetensors does not match its hash"):
        load(package)


@pytest.mark.parametrize("length", [0, 7, 100, 0.5])
def test_truncated_weights_are_refused_even_with_fitting_hashes(package, length):
    file = package / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    sign(package)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load(package)


def test_an_edited_configuration_is_refused(package):
    text = (package / "config.json").read_text()
    (package / "config.json").write_text(text.replace('"lmax_edge": 2', '"lmax_edge": 3'))
    with pytest.raises(UserError, match=r"config\.json does not match its hash"):
        load(package)


def test_an_edited_configuration_with_fitting_hashes_does_not_fit_the_weights(package):
    edit(package, lambda config: config["model"]["backbone"].update(channels=8))
    with pytest.raises(UserError, match=r"does not fit config\.json"):
        load(package)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\xff", '{"format": 1}'])
def test_a_configuration_that_is_no_package_s_is_refused(package, text):
    (package / "config.json").write_bytes(text.encode("latin-1"))
    sign(package)
    with pytest.raises(UserError, match=r"config\.json"):
        load(package)


@pytest.mark.parametrize("found", [2, 0, "1", None])
def test_another_format_is_refused(package, found):
    edit(package, lambda config: config.update(format=found))
    with pytest.raises(UserError, match=rf"format {found!r}, this sciml reads 1"):
        load(package)


def test_hashes_that_are_no_table_are_refused(package):
    (package / "hashes.json").write_text("[]")
    with pytest.raises(UserError, match=r"hashes\.json"):
        load(package)


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_in_place_of_the_weights_is_not_unpickled(package, tmp_path, protocol):
    canary = tmp_path / "canary"
    (package / "weights.safetensors").write_bytes(pickle.dumps(Canary(canary), protocol=protocol))
    sign(package)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load(package)
    torch.save({"x": Canary(canary)}, package / "weights.safetensors")
    sign(package)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load(package)
    assert not canary.exists()


CODE = "os:system"


@pytest.mark.parametrize(
    "change",
    [
        lambda model, command: model["backbone"].update(_target_="os.system", command=command),
        lambda model, command: model["backbone"].update(name="os:system"),
        lambda model, command: model["backbone"].update(name="../../evil"),
        lambda model, command: model["heads"].update({CODE: {"command": command}}),
        lambda model, command: model["heads"]["energy"].update(_target_="os.system", _args_=[command]),
        lambda model, command: model["heads"]["energy"].update(name="subprocess.run"),
        lambda model, command: model["heads"].update(energy="os.system"),
        lambda model, command: model["context"].update(_target_="os.system"),
        lambda model, command: model.update(backbone={"_target_": "os.system"}),
    ],
)
def test_a_configuration_cannot_choose_code(package, tmp_path, change):
    canary = tmp_path / "canary"
    edit(package, lambda config: change(config["model"], f"touch {canary}"))
    with pytest.raises(UserError):
        load(package)
    assert not canary.exists()


def test_saving_is_all_or_nothing(package, monkeypatch):
    """A failure at any point leaves the older package as it was and nothing beside it."""
    before = {file.name: file.read_bytes() for file in package.iterdir()}
    for name in ("save_file", "file_sha256"):

        def fail(*args, **kwargs):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"sciml.package.{name}", fail)
            with pytest.raises(OSError, match="No space"):
                write(package, seed=1)
        assert {file.name: file.read_bytes() for file in package.iterdir()} == before
        assert [entry.name for entry in package.parent.iterdir()] == ["package"]


def test_a_failed_exchange_leaves_the_older_package(package, monkeypatch):
    """The new folder cannot take its place: the old one comes back."""
    before = file_sha256(package / "weights.safetensors")
    replace = os.replace

    def fail(source, target):
        if ".partial-" in str(source):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("sciml.package.os.replace", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(package, seed=1)
    assert file_sha256(package / "weights.safetensors") == before
    assert [entry.name for entry in package.parent.iterdir()] == ["package"]


def test_a_new_package_replaces_the_older_one(package):
    before = file_sha256(package / "weights.safetensors")
    write(package, seed=1)
    assert file_sha256(package / "weights.safetensors") != before
    load(package)
    assert [entry.name for entry in package.parent.iterdir()] == ["package"]


def test_a_package_moves_to_another_process_and_folder(original, tmp_path):
    """Nothing but the four files is needed: another working directory, no data, no state of this process."""
    import shutil

    moved = shutil.copytree(original, tmp_path / "a name with = and (brackets)")
    graph = graph_of(random_crystal(np.random.default_rng(0)), "atoms", torch.float32)
    torch.save(graph.to_dict(), tmp_path / "graph.pt")
    code = (
        "import sys, torch, sciml\nfrom sciml.graph import collate\n"
        "graph = sciml.Graph(**torch.load('graph.pt'))\n"
        "model = sciml.load(sys.argv[1]).model\n"
        "print(model(collate([graph]), 'atoms')['energy'].item().hex())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(moved)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = outputs(load(original).model, "atoms", graph)["energy"].item()
    assert float.fromhex(found.stdout.strip()) == pytest.approx(expected, abs=1e-5)


def test_something_else_is_no_package(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(UserError, match="is not a package"):
            load(path)


def test_build_model_names_an_option_that_does_not_exist():
    with pytest.raises(UserError, match=r"heads\.energy: .*'depth'"):
        description = describe_model(("atoms",))
        description["heads"]["energy"] = {"depth": 3}
        build_model(description)
