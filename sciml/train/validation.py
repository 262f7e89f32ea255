"""The loss of a validation, target by target, for every store and every domain."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciml.data.source import Source, source_names


class StoreLosses:
    """Sums of losses and labels (2, stores, targets) in float64 over a pass of ``sources``."""

    def __init__(self, sources: Sequence[Source], targets: Sequence[str], device: torch.device) -> None:
        self.stores, self.targets = source_names(sources), list(targets)
        self.domains = [source.data.domain for source in sources]
        self._table = torch.zeros(2, len(self.stores), len(self.targets), dtype=torch.float64, device=device)

    def add(self, items: Sequence[tuple[int, int]], losses: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add {target: (losses (B,), labels (B,))} of the graphs ``items`` (source index, record index)."""
        sources = torch.tensor([source for source, _ in items], device=self._table.device)
        for target, both in losses.items():
            column = self._table[:, :, self.targets.index(target)]
            column.index_add_(1, sources, torch.stack(both).to(column))

    def means(self, strategy: Any) -> dict[str, float]:
        """{"store/NAME/TARGET" or "domain/NAME/TARGET": loss per label} wherever there are labels, over all ranks."""
        table = strategy.reduce(self._table, reduce_op="sum").cpu()
        means: dict[str, float] = {}
        for level, names in (("store", self.stores), ("domain", self.domains)):
            for name in dict.fromkeys(names):
                rows = [row for row, other in enumerate(names) if other == name]
                losses, labels = table[:, rows].sum(dim=1).tolist()
                for target, loss, number in zip(self.targets, losses, labels, strict=True):
                    if number:
                        means[f"{level}/{name}/{target}"] = loss / number
        return means


def validation_lines(values: dict[str, float]) -> list[tuple[str, str]]:
    """The losses of a validation for people: ("", those of all data), then ("of STORE: ", those of each store) where
    there are several.
    """
    groups: dict[str, list[str]] = {}
    for name, value in sorted(values.items()):
        level, *inner = name.removeprefix("val/").split("/")
        if level != "domain":
            groups.setdefault(f"of {'/'.join(inner[:-1])}: " if inner else "", []).append(
                f"{inner[-1] if inner else level} {value:.4g}"
            )
    if len(groups) == 2:  # the only store is all data
        groups = {"": groups[""]}
    return [(where, "  ".join(groups[where])) for where in sorted(groups)]
