"""Every group composes, and every mistake is one sentence that names the key, what was found and what to write."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from sciml.config import configs_folder, configure, groups, keys, to_yaml
from sciml.errors import UserError
from sciml.schema import CONFIGS, SAMPLES, TrainConfig, seconds

OPTIONS = [(verb, group, option) for verb in CONFIGS for group, options in groups(verb).items() for option in options]
REQUIRED = {
    "train": ["train=x.xyz"],
    "evaluate": ["package=p", "store=s"],
    "verify": ["package=p"],
    "ingest": ["source=a", "output=b"],
    "inspect": ["source=a"],
    "doctor": ["train=x.xyz"],
    "audit": ["source=a"],
    "split": ["source=a", "output=b"],
    "heat": ["source=a", "output=b"],
}


def test_each_group_has_options() -> None:
    assert {group for _, group, _ in OPTIONS} >= {"model", "objective", "optimizer", "trainer", "strategy", "logger"}


@pytest.mark.parametrize(("verb", "group", "option"), OPTIONS)
def test_each_option_composes_and_validates(verb: str, group: str, option: str) -> None:
    starts = ["init=p"] if group == "adapt" or option.startswith("finetune") else []
    starts += ["heads=direct"] if option == "zero3" else []  # which takes no derivatives of energies
    config = configure(verb, [*REQUIRED[verb], *starts, f"{group}={option}"])
    assert isinstance(config, CONFIGS[verb])
    assert CONFIGS[verb].model_validate(yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize("verb", CONFIGS)
def test_each_verb_validates_with_its_required_keys_alone(verb: str) -> None:
    configure(verb, REQUIRED[verb])
    with pytest.raises(UserError, match=rf"^{REQUIRED[verb][0].partition('=')[0]}: found nothing, expected "):
        configure(verb)


def test_defaults_live_in_the_yaml_files_only() -> None:
    for verb, section in CONFIGS.items():
        for key, field in keys(section):
            assert field.is_required(), f"{verb} {key} has a default in the schema"
            assert field.description, f"{verb} {key} has no description"


def test_a_sample_name_becomes_a_folder() -> None:
    config = configure("train", ["experiment=quickstart"])
    assert isinstance(config, TrainConfig)
    assert config.train
    assert {Path(path).parent for path in config.train} == {SAMPLES}


def test_the_quickstart_samples_are_embedded() -> None:
    config = configure("train", ["experiment=quickstart"])
    for path in config.train:
        assert (Path(path) / "manifest.json").is_file(), path


@pytest.mark.parametrize("value", ["1", "[1]", "{a: 2}"])
def test_keys_of_ones_own_model_need_no_plus(value: str) -> None:
    config = configure("train", ["train=x", f"model.options.mine={value}"])
    assert config.model.options == {"mine": ast.literal_eval(value.replace("a:", "'a':"))}


@pytest.mark.parametrize("word", ["data.weights={mine: 8.0}", "data.weights.mine=8", "+data.weights.mine=8.0"])
def test_weights_of_stores_are_given_by_their_names(word: str) -> None:
    assert configure("train", ["train=x", word]).data.weights == {"mine": 8.0}


def test_heads_and_targets_can_be_added_and_left_out() -> None:
    heads = ["heads.jet_class=null", "heads.mine={name: energy, hidden: 8}"]
    terms = ["objective.others.mine={weight: 2, loss: mse, power: 3}", "objective.energy.loss=mae"]
    config = configure("train", ["train=x", *heads, *terms])
    supervised = [name for name in config.heads if not name.startswith(("denoise", "masked"))]
    assert supervised == ["energy", "residue_type", "mine"]
    assert config.objective.terms["mine"] == {"weight": 2, "loss": "mse", "power": 3}
    assert config.objective.terms["energy"] == {"weight": 1, "loss": "mae"}, "delta belongs to huber"


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["trainer.max_steps=7"], (7, None)),
        (["trainer.max_time=00:00:07"], (None, "00:00:07")),
        (["trainer.max_time=00:00:07", "trainer.max_steps=7"], (7, "00:00:07")),
        (["experiment=quickstart", "trainer.max_steps=7"], (7, None)),
    ],
)
def test_a_typed_budget_replaces_the_default_one(typed: list[str], kept: tuple[int | None, str | None]) -> None:
    trainer = configure("train", ["train=x", *typed]).trainer
    assert (trainer.max_steps, trainer.max_time) == kept


def test_durations() -> None:
    assert seconds("max_time", "00:10:00") == 600
    assert seconds("max_time", "1:00:00:01") == 86401
    assert configure("train", ["train=x", "trainer.max_time=01:00:00"]).trainer.max_seconds == 3600


MISTAKES = [
    (["model.chanels=3"], "model.chanels: this key is not known to sciml train (did you mean model.channels?)."),
    (["max_time=1"], "max_time: this key is not known to sciml train (did you mean trainer.max_time?)."),
    (["modle=tiny"], "modle: this key is not known to sciml train (did you mean model?)."),
    (["+model.chanels=3"], "model.chanels: this key is not known to sciml train (did you mean model.channels?)."),
    (["hydra.run.dir=x"], "hydra.run.dir: this key is not known"),
    (
        ["model=smal"],
        "model: found 'smal', expected one of base, large, small, tiny, transformer (did you mean small?).",
    ),
    (["experiment=nope"], "experiment: found 'nope', expected one of "),
    (["model.channels=abc"], "model.channels: found 'abc', expected a valid integer."),
    (["model.channels=1.5"], "model.channels: found 1.5, expected a valid integer."),
    (["model.channels=true"], "model.channels: found True, expected a valid integer."),
    (["model.channels=-3"], "model.channels: found -3, expected greater than 0."),
    (["data.batch.atoms.max_nodes=0"], "data.batch.atoms.max_nodes: found 0, expected greater than 0."),
    (["data.cutoff.atoms=-1"], "data.cutoff.atoms: found -1, expected greater than 0."),
    (["data.batch=5"], "data.batch: found 5, expected a section with the keys atoms, jets, residues."),
    (["data.batch.atom={}"], "data.batch.atom: this key is not known to sciml train (did you mean data.batch.atoms"),
    (["data.val_fraction=0.6", "data.test_fraction=0.5"], "data.val_fraction + test_fraction: found 1.1, expected"),
    (["trainer.max_steps=0"], "trainer.max_steps: found 0, expected greater than 0."),
    (["trainer.max_time=null"], "trainer.max_steps and max_time: found null for both, expected one of them"),
    (["trainer.max_time=00:00:00"], "trainer.max_time: found '00:00:00', expected more than zero seconds."),
    (["trainer.max_time=ten"], "trainer.max_time: found 'ten', expected HH:MM:SS or DD:HH:MM:SS"),
    (["trainer.segment_time=5"], "trainer.segment_time: found '5', expected HH:MM:SS"),
    (["resume=true"], "resume: found true without run_dir, expected run_dir=FOLDER of the run to continue."),
    (["trainer.precision=64-bf16"], "trainer.precision: found '64-bf16', expected '32', '64' or 'bf16-mixed'."),
    (["trainer.precision=bf16"], "(did you mean bf16-mixed?)."),
    (["trainer.devices=2"], "trainer.devices: found 2 with strategy=single, expected 1, or strategy=ddp."),
    (
        ["trainer.devices=2", "strategy=ddp", "data.bins_per_step=3"],
        "data.bins_per_step.atoms: found 3, expected a multiple of trainer.devices=2",
    ),
    (
        ["trainer.devices=2", "strategy=ddp", "data.bins_per_step=2", "run_dir=x"],
        "run_dir and trainer.max_steps: found null with strategy=ddp, expected values",
    ),
    (
        [
            *("trainer.devices=2", "strategy=ddp", "data.bins_per_step=2", "run_dir=x", "trainer.max_steps=9"),
            "trainer.max_time=00:05:00",
        ],
        "trainer.max_time: found 00:05:00 with strategy=ddp, expected null",
    ),
    (["data.bins_per_step=0"], "data.bins_per_step: found 0 for every kind"),
    (["model.backend=triton"], "model.backend: found triton with trainer.accelerator=cpu, expected auto."),
    (["model.backend=cpu", "trainer=gpu"], "model.backend: found cpu with trainer.accelerator=gpu, expected auto."),
    (["objective.energy.loss=hubr"], "objective.energy.loss: found 'hubr', expected one of "),
    (["heads.energi.hidden=3"], "heads.energi: found 'energi', expected one of "),
    (["heads.mine={name: energi}"], "heads.mine: found 'energi', expected one of "),
    (["objective.energy.wieght=3"], "objective.energy.wieght: this key is not known to sciml train (did you mean obj"),
    (["objective.enery.weight=3"], "objective.enery.weight: this key is not known to sciml train (did you mean obj"),
    (["objective.others.mine={weight: 1}"], "objective.others.mine.loss: found nothing, expected"),
    (["objective.energy.delta=-1"], "objective.energy.delta: found -1, expected greater than 0."),
    (["model.name=bakbone"], "model.name: found 'bakbone', expected one of backbone"),
    (
        [
            f"objective.{name}.weight=0"
            for name in ("energy", "forces", "stress", "label", "residue_types", "true_momenta", "true_mass", "true_pt")
        ],
        "objective.weight: found 0 for every target, expected at least one above 0.",
    ),
    (["optimizer.learning_rate=nan"], "optimizer.learning_rate: found nan, expected a finite number."),
    (["optimizer.betas=[0.9]"], "optimizer.betas: found [0.9]"),
    (["model.radial.hidden=64"], "model.radial.hidden: found 64, expected a valid list."),
    (["model.channels=[1,"], "model.channels: found '[1,', expected a value that Hydra can read ("),
    (["model.channels=${nothing}"], "the configuration cannot be composed: Interpolation key 'nothing' not found"),
    (["~trainer.devices"], "trainer.devices: found nothing, expected devices of a machine"),
    (["tiny"], "'tiny' is not KEY=VALUE (did you mean model=tiny?); see sciml train --help."),
    (["run_dir=a", "run_dir=b"], "run_dir: found twice, expected once"),
]


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_mistakes_are_one_sentence(typed: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        configure("train", ["train=x.xyz", *typed])
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message
    assert message.endswith(".")
    assert not re.search(r"pydantic|omegaconf|Traceback", message, re.IGNORECASE)


def recipe(folder: Path, text: str) -> str:
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("name", ["recipes", "my recipes (1)", "a=b", "it's,ok", "${x}", "äöü"])
def test_a_folder_of_ones_own_recipes(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    text = "# @package _global_\ndefaults:\n  - override /model: tiny\nname: mine\ntrain: a.xyz\nseed: 3\n"
    config = configure("train", ["experiment=mine", "seed=4"], recipe(folder, text))
    assert (config.name, config.train, config.seed, config.model.channels) == ("mine", ["a.xyz"], 4, 24)


def test_mistakes_in_ones_own_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--config-dir: .*nowhere' is not a folder"):
        configure("train", [], str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"^experiment: found 'other', expected one of .*mine.* \(looked in "):
        configure("train", ["experiment=other"], recipe(tmp_path, "seed: 3\n"))
    header = "# @package _global_\ntrain: x\n"
    with pytest.raises(UserError, match=r"mine\.yaml, line \d+, column \d+: this is not YAML, .*\.$"):
        configure("train", ["experiment=mine"], recipe(tmp_path, header + "model: {channels: [3}\n"))
    with pytest.raises(UserError, match=r"^model\.chanels: this key is not known .*did you mean model\.channels"):
        configure("train", ["experiment=mine"], recipe(tmp_path, header + "model: {chanels: 3}\n"))
    with pytest.raises(UserError, match=r"^trainer\.max_time: found 600, expected a valid string"):
        configure("train", ["experiment=mine"], recipe(tmp_path, header + "trainer: {max_time: 10:00}\n"))
    with pytest.raises(UserError, match=r"^the configuration cannot be composed: .*nope"):
        configure(
            "train", ["experiment=mine"], recipe(tmp_path, "# @package _global_\ndefaults: [override /model: nope]\n")
        )
    (tmp_path / "experiment" / "mine.yaml").write_bytes(b"\xff\xfe\x00name: x")
    with pytest.raises(UserError, match=r"mine|read|YAML"):
        configure("train", ["experiment=mine"], str(tmp_path))


def test_the_folder_of_the_configs_is_found() -> None:
    assert (configs_folder() / "train.yaml").is_file()
