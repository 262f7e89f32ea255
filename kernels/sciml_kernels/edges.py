"""A directed edge list sorted by receiver, with the index tables that kernels walk."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Edges:
    """Edges from senders to receivers, made once per batch and shared by all layers.

    Attributes:
        senders, receivers: (edges,) int64, receivers in ascending order.
        num_nodes: nodes at the receiving side (rows of the output).
        num_senders: nodes at the sending side (rows of x); the same unless the graph is bipartite.
    """

    def __init__(
        self,
        senders: Tensor,
        receivers: Tensor,
        num_nodes: int,
        num_senders: int | None = None,
        *,
        validate: bool = True,
    ) -> None:
        """Check the edge list; `validate=False` skips the checks that read the data (inside torch.compile, say).

        Raises:
            ValueError: wrong shape or dtype, receivers not ascending, or an index outside its side.
        """
        self.senders, self.receivers = senders, receivers
        self.num_nodes = num_nodes
        self.num_senders = num_nodes if num_senders is None else num_senders
        for name, index in (("senders", senders), ("receivers", receivers)):
            if index.dtype != torch.int64 or index.dim() != 1:
                raise ValueError(f"{name}: found {index.dtype} of shape {tuple(index.shape)}, expected int64 (edges,)")
        if senders.shape != receivers.shape or senders.device != receivers.device:
            raise ValueError(
                f"receivers: found {tuple(receivers.shape)} on {receivers.device}, "
                f"expected as senders {tuple(senders.shape)} on {senders.device}"
            )
        if validate and senders.numel():
            self._check_values()

    def _check_values(self) -> None:
        if bool((self.receivers[1:] < self.receivers[:-1]).any()):
            raise ValueError("receivers: found in no ascending order, expected edges sorted by receiver")
        first, last = int(self.receivers[0]), int(self.receivers[-1])
        if first < 0 or last >= self.num_nodes:
            raise ValueError(f"receivers: found {first}..{last}, expected within 0..{self.num_nodes - 1}")
        least, most = (int(value) for value in torch.aminmax(self.senders))
        if least < 0 or most >= self.num_senders:
            raise ValueError(f"senders: found {least}..{most}, expected within 0..{self.num_senders - 1}")

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return self.senders.shape[0]

    @cached_property
    def pointers(self) -> Tensor:
        """(num_nodes + 1,) int64: the edges of receiver n are pointers[n] to pointers[n + 1]."""
        nodes = torch.arange(self.num_nodes + 1, device=self.receivers.device)
        return torch.searchsorted(self.receivers.contiguous(), nodes)
