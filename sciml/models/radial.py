"""The network of distances: from the embedding of an edge to the last hidden layer of its weights."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from sciml_kernels import EdgeEmbedding, Edges, radial_network


class RadialNetwork(nn.Module):
    """Hidden features of an edge from its distance and its two ends; a convolution maps them to its weights.

    The first layer sees the radial basis, optional edge scalars and a linear map of either node's embedding. The
    envelope multiplies the last layer, so that every weight vanishes smoothly at the cutoff.
    """

    def __init__(
        self, basis: int, hidden: list[int], channels: int, edge_scalars: dict[str, int], backend: str
    ) -> None:
        super().__init__()
        self.backend = backend
        self.basis = nn.Linear(basis, hidden[0])
        self.sender = nn.Linear(channels, hidden[0], bias=False)
        self.receiver = nn.Linear(channels, hidden[0], bias=False)
        self.edge_scalars = nn.ModuleDict({k: nn.Linear(n, hidden[0], bias=False) for k, n in edge_scalars.items()})
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(hidden))

    def forward(
        self,
        edge: EdgeEmbedding,
        edges: Edges,
        sender: Tensor,
        receiver: Tensor,
        kind: str,
        edge_scalars: Tensor | None,
    ) -> Tensor:
        """Return (E, hidden[-1]); ``sender`` and ``receiver`` (n, C) the embeddings of the nodes on either side,
        ``edge_scalars`` (E, k) or None.
        """
        shift = edges.at_senders(self.sender(sender), self.backend)
        shift = shift + edges.at_receivers(self.receiver(receiver), self.backend)
        known = edge.basis
        if edge_scalars is not None and kind in self.edge_scalars:
            known = torch.cat([known, edge_scalars], dim=1)
        layers = self.layers(kind, edge_scalars)
        parameters = torch.cat([value.flatten() for layer in layers for value in layer])
        widths = [len(bias) for _, bias in layers]
        return radial_network(known, shift.to(known.dtype), edge.envelope, parameters, widths, self.backend)

    def layers(self, kind: str, edge_scalars: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Weight (out, in) and bias of every layer of edges; the first reads the basis and, where there are such, the
        ``edge_scalars`` behind it.
        """
        linear: list[Any] = [self.basis, *self.hidden]
        layers: list[tuple[Tensor, Tensor]] = [(layer.weight, layer.bias) for layer in linear]
        if edge_scalars is not None and kind in self.edge_scalars:
            of_scalars: Any = self.edge_scalars[kind]
            layers[0] = torch.cat([layers[0][0], of_scalars.weight], dim=1), layers[0][1]
        return layers
