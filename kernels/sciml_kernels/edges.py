"""A directed edge list sorted by receiver, with the index tables that kernels walk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from sciml_kernels.backends import choose
from sciml_kernels.checks import check_device, check_index, check_type, readable
from sciml_kernels.segments import library, reference

Value = TypeVar("Value")


class Lazy(Generic[Value]):
    """A property computed once, at its first use.

    As functools.cached_property, but torch.compile can trace the first use: there is no lock in it.
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Lazy[Value]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object | None, owner: type) -> Value | Lazy[Value]:
        if instance is None:
            return self
        value = self.function(instance)
        object.__setattr__(instance, self.name, value)
        return value


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
        """Check the edge list; `validate=False` skips the checks that read the data, and tracers do.

        Raises:
            ValueError: no tensors, wrong shape or dtype, receivers not ascending, or an index outside its side.
        """
        self.senders, self.receivers = senders, receivers
        self.num_nodes = num_nodes
        self.num_senders = num_nodes if num_senders is None else num_senders
        for name, index in (("senders", senders), ("receivers", receivers)):
            check_type(name, index, Tensor)
            if index.dtype != torch.int64 or index.dim() != 1:
                raise ValueError(f"{name}: found {index.dtype} of shape {tuple(index.shape)}, expected int64 (edges,)")
        if senders.shape != receivers.shape or senders.device != receivers.device:
            raise ValueError(
                f"receivers: found {tuple(receivers.shape)} on {receivers.device}, "
                f"expected as senders {tuple(senders.shape)} on {senders.device}"
            )
        if validate and readable(senders) and senders.numel():
            self._check_values()

    def _check_values(self) -> None:
        if bool((self.receivers[1:] < self.receivers[:-1]).any()):
            raise ValueError("receivers: found in no ascending order, expected edges sorted by receiver")
        first, last = int(self.receivers[0]), int(self.receivers[-1])
        if first < 0 or last >= self.num_nodes:
            raise ValueError(f"receivers: found {first}..{last}, expected within 0..{self.num_nodes - 1}")
        check_index("senders", self.senders, self.num_senders)

    @property
    def num_edges(self) -> int:
        """How many edges there are."""
        return self.senders.shape[0]

    @Lazy
    def pointers(self) -> Tensor:
        """(num_nodes + 1,) int64: the edges of receiver n are pointers[n] to pointers[n + 1]."""
        return _pointers(self.receivers, self.num_nodes)

    @Lazy
    def order(self) -> Tensor:
        """(edges,) int64: the edges sorted by sender; those of one sender keep their order."""
        return torch.argsort(self.senders, stable=True)

    @Lazy
    def sender_pointers(self) -> Tensor:
        """(num_senders + 1,) int64: the edges of sender n are order[sender_pointers[n] : sender_pointers[n + 1]]."""
        return _pointers(self.senders[self.order], self.num_senders)

    @Lazy
    def places(self) -> Tensor:
        """(edges,) int64: where each edge stands in `order`."""
        ascending = torch.arange(self.num_edges, device=self.order.device)
        return torch.empty_like(self.order).scatter_(0, self.order, ascending)

    def at_receivers(self, values: Tensor, backend: str = "auto") -> Tensor:
        """values[receivers], of rows of the receiving side; the gradient is a sum in the order of the edges.

        Indexing as such would sort the edges for its gradient, which takes several times as long.

        Raises:
            ValueError: another number of rows, or another device.
        """
        self._check_rows(values, self.num_nodes)
        return self._expand(values, self.pointers, backend)

    def at_senders(self, values: Tensor, backend: str = "auto") -> Tensor:
        """values[senders], of rows of the sending side; the gradient is a sum in a fixed order.

        Raises:
            ValueError: another number of rows, or another device.
        """
        self._check_rows(values, self.num_senders)
        if values.device.type == "cpu":  # one thread adds the rows there, in their order
            return values.index_select(0, self.senders)
        return self._expand(values, self.sender_pointers, backend).index_select(0, self.places)

    def _check_rows(self, values: Tensor, rows: int) -> None:
        if values.dim() < 1 or values.shape[0] != rows:
            raise ValueError(f"values: found shape {tuple(values.shape)}, expected ({rows}, ...)")
        check_device("values", values, "the edges", self.senders)

    def _expand(self, values: Tensor, pointers: Tensor, backend: str) -> Tensor:
        """The row of its segment for every edge; the pointers are right, so that nothing is checked."""
        chosen = choose(backend, values)
        if chosen == "reference":
            return reference.segment_expand(values, pointers, self.num_edges)
        return library.segment_expand(values, pointers, self.num_edges, chosen)

    @Lazy
    def pieces(self) -> Tensor:
        """The edges of the receivers in pieces of limited length, see `cut_rows`."""
        return cut_rows(self.pointers, self.num_edges)

    @Lazy
    def sender_pieces(self) -> Tensor:
        """The same of the senders."""
        return cut_rows(self.sender_pointers, self.num_edges)

    def tables(self, backend: str, by_sender: bool) -> Tables:
        """What a compiled convolution walks along; `by_sender` adds what the gradient to x needs."""
        if backend == "cpu":
            return Tables(self.senders, self.pointers)
        if not by_sender:
            return Tables(self.senders, self.pointers, self.pieces)
        return Tables(self.senders, self.pointers, self.pieces, self.receivers, self.order, self.sender_pieces)


class Tables(NamedTuple):
    """Index tables of edges by name, see `Edges`; those that nobody needs are None, all of them for a product."""

    senders: Tensor | None = None
    pointers: Tensor | None = None
    pieces: Tensor | None = None
    receivers: Tensor | None = None
    order: Tensor | None = None
    sender_pieces: Tensor | None = None


def cut_rows(pointers: Tensor, num_edges: int, longest: int | None = None) -> Tensor:
    """Cut compressed rows into pieces, so that one program of a GPU never walks a very long one alone.

    The number of pieces depends on shapes only, so that nothing waits for the device: nodes + edges // longest.

    Args:
        pointers: (nodes + 1,), the entries of node n are pointers[n] to pointers[n + 1].
        num_edges: entries in all.
        longest: the most entries of a piece; by default 8 times the mean, and 64 at least.

    Returns:
        (pieces, 5): the node of a piece, its first entry, their end, the first further piece of this node and their
        end. Piece n < nodes is the first of node n; the further ones follow in order of their nodes and are counted
        from there. Those that are not needed are empty.
    """
    nodes = pointers.shape[0] - 1
    longest = longest or max(64, 8 * -(-num_edges // max(nodes, 1)))
    further = (pointers.diff() - 1).clamp(min=0) // longest
    extras = torch.cat([further.new_zeros(1), further.cumsum(0)])
    index = torch.arange(num_edges // longest, device=pointers.device)
    owner = torch.searchsorted(extras[1:], index, right=True)
    needed = owner < nodes
    owner = owner.clamp(max=nodes - 1)
    node = torch.cat([torch.arange(nodes, device=pointers.device), owner])
    first = torch.cat([pointers[:-1], pointers[owner] + (index - extras[owner] + 1) * longest])
    end = torch.minimum(first + longest, pointers[node + 1])
    end[nodes:] = torch.where(needed, end[nodes:], first[nodes:])
    return torch.stack([node, first, end, extras[node], extras[node + 1]], 1)


def _pointers(ascending: Tensor, nodes: int) -> Tensor:
    return torch.searchsorted(ascending.contiguous(), torch.arange(nodes + 1, device=ascending.device))
