"""The loaders of a run: from sources to the micro-batches of training and validation."""

from collections.abc import Mapping, Sequence

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from sciml.data.corruption import Corruption, Corruptions
from sciml.data.far_field import FarField
from sciml.data.graph_dataset import GraphDataset, evaluation_loader, ignore_signals
from sciml.data.packing import Budget
from sciml.data.sampler import Plan, Stream, with_share
from sciml.data.source import Source, source_names
from sciml.data.targets import Target
from sciml.errors import UserError


class DataModule(lightning.LightningDataModule):
    """Loaders of a run.

    ``cutoffs``, ``coarse_cutoffs`` (none without a coarse level) and ``budgets`` per kind; ``bins_per_step``
    {kind: micro-batches of an optimizer step over all ranks}; ``far_field`` what the model needs of atoms beyond their
    edges; ``corruptions`` those of the objectives of pretraining; ``weights`` {name of a source: factor} of how often
    its records are drawn; ``replay`` the share of the draws of each kind that replayed sources get; ``targets`` those
    of the configuration. Raises UserError where a weight names no source.
    """

    def __init__(
        self,
        train: list[Source],
        validation: list[Source],
        kinds: list[str],
        cutoffs: dict[str, float],
        budgets: dict[str, Budget],
        bins_per_step: dict[str, int],
        temperature: float,
        seed: int,
        workers: int,
        cache_mib: float = 0.0,
        coarse_cutoffs: dict[str, float] | None = None,
        far_field: FarField = FarField(),  # noqa: B008 (frozen)
        corruptions: Sequence[Corruption] = (),
        weights: Mapping[str, float] | None = None,
        replay: float = 0.0,
        targets: Sequence[Target] = (),
    ) -> None:
        super().__init__()
        self.kinds, self.budgets, self.seed, self.workers = kinds, budgets, seed, workers
        noise, fixed = (Corruptions(corruptions, seed, stream) if corruptions else None for stream in (0, 1))
        self.training = GraphDataset(train, cutoffs, cache_mib, coarse_cutoffs, far_field, noise, targets)
        self.validation = GraphDataset(validation, cutoffs, cache_mib, coarse_cutoffs, far_field, fixed, targets)
        self.bins_per_step = {kind: bins_per_step[kind] for kind in kinds}
        given = factors = _factors(source_names(train), weights or {})
        self.streams = {}
        for kind in kinds:
            costs = [source.costs(kind, cutoffs[kind]) for source in train]
            nodes, edges = [cost[0] for cost in costs], [cost[1] for cost in costs]
            if replay:
                sizes = [int(np.count_nonzero(costs)) for costs in nodes]
                factors = with_share(sizes, temperature, given, [source.replayed for source in train], replay)
            self.streams[kind] = Stream(kind, nodes, edges, budgets[kind], seed, temperature, factors)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of an optimizer step over all ranks."""
        return sum(self.bins_per_step.values())

    def train_dataloader(self) -> DataLoader:
        """Micro-batches from the optimizer step at which the trainer stands."""
        trainer = self._trainer()
        start, size, rank = trainer.global_step, trainer.world_size, trainer.global_rank
        plan = Plan(self.streams, self.bins_per_step, self.seed, size, rank, self.training.counts, start_step=start)
        return DataLoader(
            self.training,
            batch_size=None,
            sampler=plan,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),  # else an iterator takes a number from the global one
            worker_init_fn=ignore_signals,
        )

    def val_dataloader(self) -> DataLoader:
        """One pass over the validation sources."""
        trainer = self._trainer()
        return evaluation_loader(self.validation, self.kinds, self.budgets, trainer.world_size, trainer.global_rank)

    def records_of_step(self, step: int) -> dict[str, list[str]]:
        """The records of an optimizer step over all ranks: {name of a source: ids}; ``step`` counts from zero."""
        names = source_names(self.training.sources)
        found: dict[str, list[str]] = {}
        for _, items in Plan(self.streams, self.bins_per_step, self.seed).bins(step):
            for source, record in items:
                identity = self.training.sources[source].data[record].get("id", record)
                found.setdefault(names[source], []).append(str(identity))
        return found

    def _trainer(self) -> lightning.Trainer:
        """The trainer that these loaders serve."""
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer yet; give it to Trainer.fit")
        return self.trainer


def _factors(names: list[str], weights: Mapping[str, float]) -> list[float]:
    """The weight of each source, 1 where none is given."""
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise UserError(f"data.weights.{unknown[0]}: there is no such store, expected one of {', '.join(names)}.")
    return [weights.get(name, 1.0) for name in names]
