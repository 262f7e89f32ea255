"""The mace-torch side of the comparisons. Runs in the virtual environment that `mace.py setup` makes, nowhere else.

It is MACE as published: `ScaleShiftMACE` with the blocks, initial scale and shift, parameter groups, loss, clipping,
moving average and step function that `mace_run_train` uses (mace-torch 0.3.16), eager on the CPU. Two things are
kinder than that program: the learning rate falls along a cosine to zero exactly at the end of the time it is given,
and only training steps count against that time. `modes` is the same model with the kernels of cuEquivariance or
OpenEquivariance.

Started with `python -P`: this folder holds a `mace.py` of its own, so it comes last on the path.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from mace import modules
from mace.data import AtomicData, Configuration
from mace.tools import AtomicNumberTable, set_seeds
from mace.tools import torch_geometric as mace_geometric
from mace.tools.scripts_utils import get_optimizer, get_params_options
from mace.tools.train import take_step
from torch_ema import ExponentialMovingAverage

sys.path.append(str(Path(__file__).parent))
from stepping import MODES, Training, every_mode
from structures import CUTOFF, edge_fingerprint
from workers import keep_result, peak_memory, say, time_steps, versions, write_result

STEP_SETTINGS = {
    "channels": 128, "layers": 2, "max_L": 1, "lmax": 3, "correlation": 3, "radial_mlp": [64, 64, 64],
    "dtype": "float32", "energy_weight": 1.0, "forces_weight": 100.0, "lr": 0.01, "weight_decay": 5e-7,
    "amsgrad": True, "clip": 10.0, "ema": None, "seed": 0,
}  # fmt: skip
OUTPUTS = {"forces": True, "virials": False, "stress": False}


def isolated_energies(path: str | None) -> dict[int, float]:
    """Energy of each isolated atom [eV] by atomic number; empty without a file."""
    if path is None:
        return {}
    return {int(frame.numbers[0]): frame.get_potential_energy() for frame in ase.io.read(path, index=":")}


class Molecules:
    """The frames of a file as MACE's graphs, the energies of the isolated atoms taken off in double precision.

    Atomic energies are a constant of MACE. Subtracted before rounding to float32 they leave the model the same and
    keep 0.5 meV of rounding (ulp of 4,209 eV) out of its labels.
    """

    def __init__(self, path: str, table: AtomicNumberTable, references: dict[int, float], settings: dict[str, Any]):
        frames = ase.io.read(path, index=":")
        self.offsets = np.array([sum(references.get(int(z), 0.0) for z in frame.numbers) for frame in frames])
        weights = {"energy": settings["energy_weight"], "forces": settings["forces_weight"]}
        self.graphs = [
            AtomicData.from_config(self._configuration(frame, offset, weights), z_table=table, cutoff=CUTOFF)
            for frame, offset in zip(frames, self.offsets, strict=True)
        ]

    @staticmethod
    def _configuration(frame: ase.Atoms, offset: float, weights: dict[str, float]) -> Configuration:
        periodic = bool(frame.pbc.any())
        return Configuration(
            atomic_numbers=frame.numbers,
            positions=frame.positions,
            properties={"energy": frame.get_potential_energy() - offset, "forces": frame.get_forces()},
            property_weights=weights,
            cell=np.array(frame.cell) if periodic else None,
            pbc=tuple(frame.pbc),
        )

    def loader(self, batch_size: int, shuffle: bool) -> Any:
        """Batches of `batch_size` graphs, the last short one dropped where shuffled, as `mace_run_train` does."""
        return mace_geometric.dataloader.DataLoader(
            dataset=self.graphs, batch_size=batch_size, shuffle=shuffle, drop_last=shuffle
        )


def build(graphs: list[AtomicData], table: AtomicNumberTable, settings: dict[str, Any]) -> torch.nn.Module:
    """ScaleShiftMACE with `rms_forces_scaling` (mean energy per atom, RMS force) and mean neighbours of `graphs`."""
    from e3nn import o3  # only after mace, which lets this e3nn read its constants

    loader = mace_geometric.dataloader.DataLoader(dataset=graphs, batch_size=50, shuffle=False)
    shift, scale = modules.compute_mean_rms_energy_forces(loader, np.zeros(len(table)))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    channels = settings["channels"]
    degrees = range(settings["max_L"] + 1)
    hidden = " + ".join(f"{channels}x{degree}{'eo'[degree % 2]}" for degree in degrees)
    return modules.ScaleShiftMACE(
        r_max=CUTOFF, num_bessel=8, num_polynomial_cutoff=5, max_ell=settings["lmax"], interaction_cls=block,
        interaction_cls_first=block, num_interactions=settings["layers"], num_elements=len(table),
        hidden_irreps=o3.Irreps(hidden), MLP_irreps=o3.Irreps("16x0e"), atomic_energies=np.zeros(len(table)),
        avg_num_neighbors=modules.compute_avg_num_neighbors(loader), atomic_numbers=table.zs,
        correlation=settings["correlation"], gate=torch.nn.functional.silu,
        radial_MLP=settings["radial_mlp"], use_reduced_cg=False,
        atomic_inter_scale=float(np.ravel(scale)[0]), atomic_inter_shift=float(np.ravel(shift)[0]),
    )  # fmt: skip


class Trainer:
    """MACE's own optimizer, loss and step around one model."""

    def __init__(self, model: torch.nn.Module, settings: dict[str, Any]):
        self.model, self.settings, self.clip = model, settings, settings["clip"]
        arguments = argparse.Namespace(
            lr=settings["lr"], weight_decay=settings["weight_decay"], amsgrad=settings["amsgrad"], beta=0.9,
            freeze=None, optimizer="adam", lr_params_factors="{}",
        )  # fmt: skip
        self.optimizer = get_optimizer(arguments, get_params_options(arguments, model))
        # The weights stand in the graphs already (property_weights); the loss multiplies by both.
        self.loss = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=1.0)
        decay = settings["ema"]
        self.average = ExponentialMovingAverage(model.parameters(), decay=decay) if decay else None

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of every parameter group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def step(self, batch: Any) -> float:
        """One training step; the loss before it."""
        loss, _ = take_step(
            self.model, self.loss, batch, self.optimizer, self.average, OUTPUTS, self.clip, torch.device("cpu")
        )
        return float(loss)


def predict(model: torch.nn.Module, molecules: Molecules) -> tuple[np.ndarray, np.ndarray]:
    """Energies (n,) [eV], isolated atoms included, and forces (sum of atoms, 3) [eV/Å]."""
    energies, forces = [], []
    for batch in molecules.loader(50, shuffle=False):
        output = model(batch.to_dict(), training=False)
        energies.append(output["energy"].detach().double().numpy())
        forces.append(output["forces"].detach().double().numpy())
    return np.concatenate(energies) + molecules.offsets, np.concatenate(forces)


def force_rmse(model: torch.nn.Module, molecules: Molecules) -> float:
    """RMSE of the forces [eV/Å]."""
    _, forces = predict(model, molecules)
    reference = np.concatenate([graph.forces.double().numpy() for graph in molecules.graphs])
    return float(np.sqrt(np.square(forces - reference).mean()))


def train_for(
    trainer: Trainer, train: Molecules, val: Molecules, seconds: float, clock: Callable[[], float]
) -> dict[str, Any]:
    """Train for `seconds` of training steps, the learning rate a cosine of the time used; steps and validation trace.

    Collating a batch counts as part of its step, as it would for any user; validation does not count.
    """
    settings, trace = trainer.settings, []
    batches = endless(train.loader(settings["batch_size"], shuffle=True))
    used, steps = 0.0, 0
    while used < seconds:
        start = clock()
        trainer.set_rate(settings["lr"] * 0.5 * (1 + math.cos(math.pi * used / seconds)))
        trainer.step(next(batches))
        steps += 1
        used += clock() - start
        if used >= seconds * (len(trace) + 1) / 10:
            with trainer.average.average_parameters():
                error = force_rmse(trainer.model, val)
            trace.append({"seconds": used, "steps": steps, "val_force_rmse": error})
            say(f"mace  {used:6.0f} s  step {steps:6d}  validation force RMSE {1e3 * error:.1f} meV/Å")
    return {"seconds": used, "steps": steps, "trace": trace}


def endless(loader: Any) -> Iterator[Any]:
    """The batches of epoch after epoch."""
    while True:
        yield from loader


def choose_weights(trainer: Trainer, val: Molecules) -> dict[str, Any]:
    """Leave in the model the better on `val` of the last and the averaged weights; which it was and its error."""
    last = force_rmse(trainer.model, val)
    with trainer.average.average_parameters():
        averaged = force_rmse(trainer.model, val)
    if averaged < last:
        trainer.average.copy_to()
        return {"weights": "average", "val_force_rmse": averaged}
    return {"weights": "last", "val_force_rmse": last}


def run_step(options: argparse.Namespace) -> dict[str, Any]:
    """Time the training step on the one structure in `options.structure`."""
    settings = STEP_SETTINGS
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    set_seeds(settings["seed"])
    before = peak_memory()
    table = AtomicNumberTable(sorted({int(z) for z in ase.io.read(options.structure).numbers}))
    molecules = Molecules(options.structure, table, {}, settings)
    trainer = Trainer(build(molecules.graphs, table, settings), settings)
    batch = next(iter(molecules.loader(1, shuffle=False)))
    timing = time_steps(lambda: trainer.step(batch), options.warmup, options.repeats)
    senders, receivers = batch.edge_index.numpy()
    positions = batch.positions.detach().numpy()
    vectors = positions[receivers] - positions[senders] + batch.shifts.numpy()
    return {
        **timing,
        **edge_fingerprint(vectors),
        "atoms": len(positions),
        "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "peak_memory_mib": peak_memory(),
        "memory_before_model_mib": before,
        "settings": settings,
    }


def accelerated(model: torch.nn.Module, accelerator: str, device: str) -> torch.nn.Module:
    """The same model with the kernels of a library, by mace-torch's own conversion."""
    if accelerator == "cuequivariance":
        from mace.cli.convert_e3nn_cueq import run
    else:
        from mace.cli.convert_e3nn_oeq import run
    return run(model.to(device), device=device, return_model=True)


def run_modes(options: argparse.Namespace) -> dict[str, Any]:
    """Time the training step on the structure in every mode of `stepping.py`."""
    settings = {**STEP_SETTINGS, "channels": options.channels}
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    table = AtomicNumberTable(sorted({int(z) for z in ase.io.read(options.structure).numbers}))
    molecules = Molecules(options.structure, table, {}, settings)
    batch = next(iter(molecules.loader(1, shuffle=False)))
    senders, receivers = batch.edge_index.numpy()
    positions = batch.positions.detach().numpy()
    fingerprint = edge_fingerprint(positions[receivers] - positions[senders] + batch.shifts.numpy())
    batch = batch.to(options.device)

    def make() -> Training:
        set_seeds(settings["seed"])
        model = accelerated(build(molecules.graphs, table, settings), options.accelerator, options.device)
        trainer = Trainer(model, settings)
        inputs = batch.to_dict()

        def loss() -> torch.Tensor:
            output = model(inputs, training=True, compute_force=True, compute_virials=False, compute_stress=False)
            return trainer.loss(pred=output, ref=batch)

        return Training(model, trainer.optimizer, loss, trainer.clip)

    def report(found: dict[str, Any]) -> dict[str, Any]:
        return {"precisions": found, **fingerprint, "atoms": len(positions), "settings": settings}

    keep = partial(keep_result, options.result, report)
    return report(every_mode(make, options.device, options.repeats, options.modes, keep))


def run_train(options: argparse.Namespace) -> dict[str, Any]:
    """Train on `options.train` for the time given; write the predictions on `options.test` where it is given."""
    settings = json.loads(options.settings)
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    set_seeds(settings["seed"])
    references = isolated_energies(options.isolated)
    table = AtomicNumberTable(sorted({int(z) for frame in ase.io.read(options.train, ":") for z in frame.numbers}))
    train, val = (Molecules(path, table, references, settings) for path in (options.train, options.val))
    trainer = Trainer(build(train.graphs, table, settings), settings)
    result = train_for(trainer, train, val, options.seconds, getattr(time, options.clock))
    result |= choose_weights(trainer, val)
    counts = {"train": len(train.graphs), "val": len(val.graphs)}
    if options.test:
        test = Molecules(options.test, table, references, settings)
        energies, forces = predict(trainer.model, test)
        np.savez(options.predictions, energies=energies, forces=forces)
        counts["test"] = len(test.graphs)
    return {
        **result,
        "configurations": counts,
        "parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "peak_memory_mib": peak_memory(),
        "settings": settings,
    }


def main() -> None:
    """Run one worker and write its JSON result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("step", "modes", "train"))
    parser.add_argument("--result", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--structure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--accelerator", choices=("cuequivariance", "openequivariance"))
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    for name in ("train", "val", "test", "isolated", "predictions", "settings"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clock", choices=("perf_counter", "process_time"), default="perf_counter")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"step": run_step, "modes": run_modes, "train": run_train}[options.task](options)
    result["versions"] = versions(
        "torch", "mace-torch", "e3nn", "ase", "numpy", "cuequivariance-torch", "openequivariance"
    )
    write_result(options.result, result)


if __name__ == "__main__":
    main()
