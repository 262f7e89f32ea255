"""The data of a run: one level of theory per set of files, references fitted together, strangers refused by name."""

from pathlib import Path

import numpy as np
import pytest

from sciml.config import configure
from sciml.data.far_field import FarField
from sciml.data.source import Source
from sciml.data.statistics import joint_statistics, statistics
from sciml.data.store import Store, StoreWriter, Subset
from sciml.errors import UserError
from sciml.ingest.ingest import open_data
from sciml.ingest.split import split_records
from sciml.train.sources import check_far_field, check_known, context_of, joined, open_splits
from sciml.verbs.train import train
from tests.helpers import random_jet, random_peptide
from tests.small import CLASSES, jets_store, molecules_store, train_config

TRUE = {1: -13.0, 6: -1030.0, 8: -2040.0}


def atoms_store(path: Path, compositions: list[list[int]], dataset: str = "pbe", energies: bool = True) -> Store:
    """Records of given atoms on a line, whose energies are sums of TRUE."""
    with StoreWriter(path, "materials", dataset) as writer:
        for index, types in enumerate(compositions):
            positions = np.arange(len(types))[:, None] * np.array([1.2, 0.0, 0.0])
            labels = {"forces": np.full((len(types), 3), 0.1 * (1 + len(types)))}
            if energies:
                labels["energy"] = sum(TRUE.get(number, 0.0) for number in types)
            record = {"types": np.array(types), "positions": positions, "cell": np.zeros((3, 3)), **labels}
            record["pbc"] = np.zeros(3, bool)
            assert writer.add({**record, "id": f"{path.name}#{index}", "group": f"{path.name}{index}"})
    return writer.close()


def named_jets(path: Path, classes: list[str], labels: list[int | None]) -> Store:
    rng = np.random.default_rng(0)
    with StoreWriter(path, "hep", "toy", metadata={"classes": classes} if classes else {}) as writer:
        for index, label in enumerate(labels):
            record = {**random_jet(rng, particles=8), "id": f"j#{index}", "group": f"j{index}"}
            record.pop("label", None)
            assert writer.add(record if label is None else {**record, "label": label})
    return writer.close()


def known(classes: list[str] | None = None, references: dict | None = None) -> dict:
    return {"datasets": ["pbe"], "references": references or {}, "scales": {}, "spreads": {}, "classes": classes or []}


def test_classes_of_other_names_or_order_are_refused(tmp_path):
    for name, classes in (("order", ["top", "qcd", "w"]), ("names", ["a", "b"])):
        source = Source(named_jets(tmp_path / name, classes, [0, 1]), 0)
        with pytest.raises(UserError, match=rf"{name}: its classes are {', '.join(classes)}, the model's are qcd, top"):
            check_known([source], known(list(CLASSES)))
    check_known([Source(named_jets(tmp_path / "first", ["qcd", "top"], [0, 1]), 0)], known(list(CLASSES)))
    check_known([Source(named_jets(tmp_path / "unlabelled", [], [None]), 0)], known(list(CLASSES)))


def test_labels_beyond_the_classes_are_refused(tmp_path):
    source = Source(named_jets(tmp_path / "jets", ["qcd", "top", "w"], [0, 2]), 0)
    source.data.manifest["classes"] = ["qcd", "top"]  # as somebody may have edited the file
    with pytest.raises(UserError, match=r"jets: the label 2 was found, but there are only the 2 classes qcd, top"):
        check_known([source], known(["qcd", "top"]))
    with pytest.raises(UserError, match=r"jets: the label 2 was found"):
        context_of([source], ["toy"])


@pytest.mark.parametrize(
    ("classes", "labels", "reason"),
    [(["qcd", "top"], [None, None], "no jet has a label"), ([], [0, 1], "its classes have no names")],
)
def test_jets_that_teach_no_class_are_refused(tmp_path, classes, labels, reason):
    with pytest.raises(UserError, match=f"jets: {reason}"):
        context_of([Source(named_jets(tmp_path / "jets", classes, labels), 0)], ["toy"])


def test_unknown_elements_are_refused_with_path_element_and_dataset(tmp_path):
    source = Source(atoms_store(tmp_path / "other", [[1, 6], [1, 92]]), 0)
    with pytest.raises(UserError, match=r"other: element U is not in the .* with energies of 'pbe', which has H, C;"):
        check_known([source], known(references={"pbe": {"1": -13.0, "6": -1030.0}}), {1, 6, 92})
    with pytest.raises(UserError, match=r"other: element U is not in the training data, which has H, C;"):
        check_known([source], known(), {1, 6})
    check_known([source], known(references={"pbe": {"1": 0.0, "6": 0.0, "92": 0.0}}))
    check_known([source], known())
    bare = Source(atoms_store(tmp_path / "bare", [[1, 92]], energies=False), 0)  # needs no energy of uranium
    check_known([bare], known(references={"pbe": {"1": -13.0}}), {1, 92})


def test_an_element_that_only_the_held_out_part_has_is_named(tmp_path):
    store = atoms_store(tmp_path / "all", [[1, 6], [6, 8]])
    train, held = Source(Subset(store, [0]), 0), Source(Subset(store, [1]), 0)
    with pytest.raises(UserError, match=r"all: element O is in the records split off for validation or test"):
        check_known([held], context_of([train], ["pbe"]))


def test_training_refuses_what_it_would_score_wrongly(tmp_path):
    jets_store(tmp_path / "jets")
    named_jets(tmp_path / "other", ["top", "qcd", "w"], [0, 1, 2])
    with pytest.raises(UserError, match="other: its classes are top, qcd, w"):
        train(train_config(tmp_path, f"val={tmp_path / 'other'}", stores=("jets",)))
    molecules_store(tmp_path / "molecules")
    atoms_store(tmp_path / "uranium", [[1, 92]], dataset="first")
    with pytest.raises(UserError, match="uranium: element U is not in the training data, which has H, C"):
        train(train_config(tmp_path, f"test={tmp_path / 'uranium'}", stores=("molecules",)))
    assert not (tmp_path / "run" / "package").exists()


def test_references_of_one_level_of_theory_are_fitted_over_all_its_stores(tmp_path):
    """Neither store alone determines its elements; together they do."""
    first = atoms_store(tmp_path / "first", [[1, 6], [1, 1, 6, 6]])
    second = atoms_store(tmp_path / "second", [[6, 8], [6, 8, 8], [1, 8]])
    context = context_of([Source(first, 0), Source(second, 0)], ["pbe"])
    assert context["references"]["pbe"] == pytest.approx({str(z): energy for z, energy in TRUE.items()})
    assert statistics(first)["reference_energies"]["1"] != pytest.approx(TRUE[1])
    squares = [0.1**2 * (1 + n) ** 2 for n in (2, 4, 2, 3, 2) for _ in range(n)]
    assert context["scales"]["pbe"] == pytest.approx(np.sqrt(np.mean(squares)))
    assert context["spreads"]["pbe"] == pytest.approx(1e-3 * context["scales"]["pbe"])  # the composition tells all


def test_known_references_stay_and_new_elements_are_fitted_to_the_rest(tmp_path):
    store = atoms_store(tmp_path / "new", [[1, 6], [6, 8], [8, 8, 1]])
    old = {"1": -10.0, "6": TRUE[6]}
    references, _, _ = joint_statistics([Subset(store, [0, 1])], old)
    assert references == pytest.approx({**old, "8": TRUE[8]})
    assert joint_statistics([atoms_store(tmp_path / "bare", [[8]], energies=False)], old)[0] == old


def write_xyz(path: Path, elements: str) -> Path:
    frame = '2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-10.0 pbc="F F F"\n'
    path.write_text(
        "".join(f"{frame}{a} 0 0 0 0.1 0 0\n{a} {1 + 0.1 * i} 0 0 -0.1 0 0\n" for i, a in enumerate(elements))
    )
    return path


def test_raw_files_of_one_reader_are_one_store_and_one_level_of_theory(tmp_path, capsys):
    first, second = write_xyz(tmp_path / "a.xyz", "HHHH"), write_xyz(tmp_path / "b.xyz", "HHHHH")
    store = atoms_store(tmp_path / "store", [[1, 1]] * 4)
    assert joined([str(first), str(store.path), str(second)]) == [[str(first), str(second)], str(store.path)]
    assert joined([str(first)]) == [str(first)]
    config = configure("train", [f"train=[{first},{store.path},{second}]", "data.val_fraction=0.25", "model=tiny"])
    datasets: list[str] = []
    splits = open_splits(config, lambda path: open_data(path, cache_dir=tmp_path / "cache"), datasets)
    assert datasets == ["a", "pbe"]
    assert [len(part.data) for part in splits.train] == [7, 3]
    assert sum("levels of theory, each with energies of its own: materials: a, pbe" in n for n in splits.notes) == 1
    assert capsys.readouterr().out.count("1 more: no stores, ingesting them on the fly as one into") == 1
    config = configure("train", [f"train={first}", f"val=[{first},{second}]", "model=tiny"])
    splits = open_splits(config, lambda path: open_data(path, cache_dir=tmp_path / "cache"), [])
    assert [(source.name, len(source.data)) for source in splits.validation] == [("a_and_1_more", 9)]
    assert not any("levels of theory" in note for note in splits.notes)


def test_a_refusal_of_a_raw_file_names_it(tmp_path):
    store = open_data(write_xyz(tmp_path / "a.xyz", "HO"), cache_dir=tmp_path / "cache")
    with pytest.raises(
        UserError, match=r"cache/a-\w+ \(from a\.xyz\): element O is not in the training data with energies of"
    ):
        check_known([Source(store, 0)], known(references={"pbe": {"1": -13.0}}))


def test_a_slab_is_refused_by_name_where_the_model_sums_over_charges(tmp_path):
    store = molecules_store(tmp_path / "molecules", records=3)
    sources = [Source(store, 0)]
    check_far_field(sources, FarField(ewald=True))
    with StoreWriter(tmp_path / "slabs", "materials", "pbe") as writer:
        for pbc in ([True] * 3, [True, True, False]):
            record = {"types": np.array([14]), "positions": np.zeros((1, 3)), "cell": 9.0 * np.eye(3), "energy": -1.0}
            assert writer.add({**record, "pbc": np.array(pbc), "id": f"slab{sum(pbc)}", "group": ""})
    sources.append(Source(writer.close(), 0))
    check_far_field(sources, FarField(radius=9.0))
    with pytest.raises(UserError, match="slabs.*record slab2 is periodic along a and b alone"):
        check_far_field(sources, FarField(ewald=True))


def test_training_splits_as_the_verb_does(tmp_path):
    """Molecules of one formula lie on one side where ``data.split_by`` says so; by default each is its own group."""
    store = atoms_store(tmp_path / "s", [[1, 1], [1, 8], [6, 8], [8, 8]] * 8)
    words = [f"train={store.path}", "model=tiny", "data.val_fraction=0.25", "data.split_by=composition"]
    config = configure("train", words)
    splits = open_splits(config, open_data, [])
    sides = [{tuple(sorted(r["types"].tolist())) for r in part[0].data} for part in (splits.train, splits.validation)]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [3, 1]
    assert any("split by composition (by reduced formula): 32 records of 4 groups" in note for note in splits.notes)
    whole, _ = split_records(store, [0.75, 0.25, 0.0], config.seed, by="composition")
    assert splits.validation[0].data.indices.tolist() == whole[1].tolist()


def test_homologs_in_two_stores_are_on_one_side(tmp_path):
    """Each store by itself would be split without the other."""
    rng = np.random.default_rng(0)
    families = [rng.integers(0, 20, 24) for _ in range(10)]
    for name in ("first", "second"):
        with StoreWriter(tmp_path / name, "biology", name) as writer:
            for family, sequence in enumerate(families):
                record = random_peptide(rng, residues=24)
                record |= {"residue_types": sequence, "id": f"{name}#{family}", "group": f"{name}{family}"}
                assert writer.add(record)
        writer.close()
    words = [f"train=[{tmp_path / 'first'},{tmp_path / 'second'}]", "data.val_fraction=0.3"]
    splits = open_splits(configure("train", words), Store, [])
    train, validation = (
        {int(record["id"].split("#")[1]) for source in part for record in source.data}
        for part in (splits.train, splits.validation)
    )
    assert train | validation == set(range(10))
    assert not train & validation
    assert len(splits.notes) == 2  # how they were divided, and the two levels of theory
    assert "first and second: split by family of sequences" in splits.notes[0]


def test_an_empty_validation_set_and_another_level_of_theory_are_refused(tmp_path):
    store = atoms_store(tmp_path / "mine", [[1, 6], [1, 8], [6, 8]])
    other = atoms_store(tmp_path / "other", [[1, 6]], dataset="ccsd")
    with pytest.raises(UserError, match="val: the validation set is empty; give val=FILE, more records, or a larger"):
        open_splits(configure("train", [f"train={store.path}", "data.val_fraction=0.0"]), Store, [])
    with pytest.raises(UserError, match="other: its level of theory is 'ccsd', the model knows 'pbe' for materials"):
        open_splits(configure("train", [f"train={store.path}", f"val={other.path}"]), Store, [])
