"""What cannot work together is refused by name, before torch is imported."""

import subprocess
import sys

import pytest

from sciml.config import configure
from sciml.errors import UserError

TWO = ("train=x", "run_dir=y", "trainer.max_steps=5", "trainer.devices=2", "data.bins_per_step=2")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["strategy=single"], "trainer.devices: found 2 with strategy=single, expected 1, or strategy=ddp"),
        (["strategy=zero3"], "strategy: found zero3 with heads.energy, whose forces are derivatives of its energy"),
        (["strategy=zero2", "trainer.precision=bf16-mixed"], "trainer.precision: found bf16-mixed with strategy=zero2"),
        (["strategy=zero1", "trainer.precision=64"], "trainer.precision: found 64 with strategy=zero1"),
        (["strategy=fsdp2", "trainer.compile=true"], "trainer.compile: found true with strategy=fsdp2"),
        (["strategy=zero3", "heads=direct", "trainer.recompute=true"], "recompute: found true with strategy=zero3"),
        (["strategy=ddp", "trainer.recompute=true", "trainer.compile=true"], "recompute: found true with trainer.c"),
        (["strategy=fsdp2", "strategy.out_of_memory=split"], "strategy.out_of_memory: found split with strategy=fsdp2"),
        (["strategy=ddp", "data.find_batch=true"], "data.find_batch: found true with 2 ranks"),
        (["strategy=fsdp2", "init=p", "adapt=lora"], "adapt: found lora with strategy=fsdp2, expected adapt=full"),
        (["strategy=ddp", "init=p", "adapt=lora", "trainer.recompute=true"], "recompute: found true with adapt=lora"),
        (["strategy=ddp", "trainer.compile=true", "model.reciprocal.charges=4"], "true with model.reciprocal.charges"),
        (["strategy=ddp", "trainer.compile=true", "heads=long_range"], "found true with heads.energy.charges, whose"),
        (["strategy=ddp", "model.backend=triton"], "model.backend: found triton with trainer.accelerator=cpu"),
    ],
)
def test_what_cannot_work_is_refused_by_name(words, sentence):
    with pytest.raises(UserError) as refusal:
        configure("train", [*TWO, *words])
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=ddp", "trainer.precision=bf16-mixed"],
        ["strategy=fsdp2", "trainer.precision=64"],
        ["strategy=zero1"],
        ["strategy=zero2", "heads=direct"],
        ["strategy=zero3", "heads=direct"],
        ["strategy=zero3", *(f"objective.{target}.weight=0" for target in ("energy", "forces", "stress"))],
        ["strategy=fsdp2", "trainer.recompute=true"],
        ["strategy=ddp", "trainer.recompute=true", "trainer.precision=bf16-mixed"],
    ],
)
def test_what_works_is_let_through(words):
    assert configure("train", [*TWO, *words]).trainer.devices == 2


def test_limits_without_edges_cannot_grow():
    with pytest.raises(UserError, match="data.batch.jets.max_edges: found null with data.find_batch=true"):
        configure("train", ["train=x", "data.find_batch=true", "data.batch.jets.max_edges=null"])


def test_a_refusal_needs_no_torch():
    program = "import sys, sciml.combinations, sciml.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
