"""A plain transformer over nodes: the baseline without equivariance, with the heads and the trainer of the backbone."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from sciml.errors import UserError
from sciml.graph import INPUTS, KINDS
from sciml.models.backbone import Backbone, edge_vectors, edges_of
from sciml.models.embedding import NodeEmbedding
from sciml.models.layers import SiLU, full_precision, multilayer_perceptron, num_components
from sciml.models.readout import Features, pool_mean, pool_sum
from sciml.models.recompute import recomputed
from sciml_kernels import edge_embedding


class Transformer(nn.Module):
    """Node features from a batch of one kind, by attention along the edges of each graph (Vaswani et al., 2017).

    Takes what :class:`sciml.models.backbone.Backbone` takes. Positions are plain inputs: those of a node from the mean
    of its graph where nothing is periodic, and for every edge its vector, its basis of lengths and its scalars, which
    bias the attention as in the Particle Transformer (Qu et al., 2022) and are added to what is sent. So no symmetry
    but that under permutations and translations holds by construction; all others are left to the data. It is smooth,
    at the cutoff too, so that energies have forces.

    Parameters beside those of the backbone: ``attention_heads``, which must divide ``channels``; ``edge_hidden`` width
    of the network of the edges. Raises UserError where they do not fit, TypeError for an option that neither has.
    """

    mean_neighbors: Tensor
    cutoffs: Tensor

    def __init__(
        self,
        kinds: list[str],
        cutoffs: dict[str, float],
        num_datasets: int,
        channels: int,
        layers: int,
        radial: dict,
        feed_forward: int,
        backend: str = "auto",
        lmax_out: int = 0,
        noise: bool = False,
        spurions: bool = True,
        attention_heads: int = 4,
        edge_hidden: int = 32,
        **of_backbone: Any,
    ) -> None:
        super().__init__()
        _check_options(of_backbone)
        inputs = {kind: INPUTS[kind] for kind in kinds}
        self.embedding = NodeEmbedding(channels, inputs, num_datasets, noise)
        self.basis, self.backend, self.lmax_out, self.spurions = radial["basis"], backend, lmax_out, spurions
        self.register_buffer("cutoffs", torch.tensor([cutoffs.get(kind, 1.0) for kind in KINDS], dtype=torch.float64))
        self.register_buffer("mean_neighbors", torch.ones(len(KINDS)))  # of the data; attention is normalised without
        self.positions = nn.Linear(3, channels, bias=False)
        vectors = noise or any(value.vectors for value in inputs.values())
        self.vectors = nn.Linear(3 * channels, channels, bias=False) if vectors else None
        self.edges = multilayer_perceptron([3 + self.basis, edge_hidden, edge_hidden])
        scalars = {kind: value.edge_scalars for kind, value in inputs.items() if value.edge_scalars}
        self.edge_scalars = nn.ModuleDict({k: nn.Linear(n, edge_hidden, bias=False) for k, n in scalars.items()})
        self.blocks = nn.ModuleList(
            AttentionBlock(channels, attention_heads, edge_hidden, feed_forward) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.components = nn.Linear(channels, num_components(lmax_out) * channels) if lmax_out else None

    def forward(self, batch: Batch, kind: str, positions: Tensor, cell: Tensor) -> Features:
        """Return the features of the nodes, normalised; components of degree above 0 are free numbers like all others.

        ``positions`` (n, 3) and ``cell`` (B, 3, 3) are given apart from the batch because forces and stress
        differentiate them.
        """
        cutoff = self.cutoffs[KINDS.index(kind)].to(positions.dtype)
        with full_precision(positions):
            vectors = edge_vectors(batch, edges_of(batch), positions, cell, self.backend) / cutoff
            edge = edge_embedding(vectors, 0, self.basis, solid=kind == "jets", backend=self.backend)
            centred = _centred(batch, positions / cutoff)
        hidden = self.edges(torch.cat([vectors, edge.basis], dim=1))
        if kind in self.edge_scalars:
            hidden = hidden + self.edge_scalars[kind](batch.edge_scalars)
        embedded = self.embedding(batch, kind, self.embedding.conditions(batch))
        x = embedded[:, 0] + self.positions(centred)
        if self.vectors is not None and embedded.shape[1] > 1:
            x = x + self.vectors(embedded[:, 1:].flatten(1))
        for block in self.blocks:
            x = block(x, hidden, edge.envelope, batch.senders, batch.receivers)
        x = self.norm(x)
        if self.components is None:
            return Features(x.unsqueeze(1))
        return Features(self.components(x).view(x.shape[0], num_components(self.lmax_out), x.shape[1]))


class AttentionBlock(nn.Module):
    """norm -> attention along the edges -> residual; norm -> feed-forward -> residual.

    With ``recompute`` set nothing inside is kept for a backward pass, which computes it again.
    """

    recompute = False

    def __init__(self, channels: int, heads: int, edge_hidden: int, expansion: int) -> None:
        super().__init__()
        if channels % heads:
            raise UserError(
                f"model.options.attention_heads: found {heads}, expected a divisor of model.channels={channels}."
            )
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.edge = nn.Linear(edge_hidden, heads + channels)
        self.out = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels),
            SiLU(),
            nn.Linear(expansion * channels, channels),
        )

    def forward(self, x: Tensor, hidden: Tensor, envelope: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        """x (n, C), hidden (E, edge_hidden), envelope (E, 1) -> (n, C)."""
        if not (self.recompute and torch.is_grad_enabled()):
            return self._forward(x, hidden, envelope, senders, receivers)

        def again(x: Tensor, hidden: Tensor, envelope: Tensor) -> Tensor:
            return self._forward(x, hidden, envelope, senders, receivers)

        return recomputed(again, [x, hidden, envelope], list(self.parameters()))

    def _forward(self, x: Tensor, hidden: Tensor, envelope: Tensor, senders: Tensor, receivers: Tensor) -> Tensor:
        nodes, channels = x.shape
        width = channels // self.heads
        query, key, value = self.query_key_value(self.norm(x)).view(nodes, 3, self.heads, width).unbind(dim=1)
        bias, sent = self.edge(hidden).split([self.heads, channels], dim=1)
        logits = (query[receivers] * key[senders]).sum(dim=2) * width**-0.5 + bias
        weights = attention_weights(logits, envelope, receivers, nodes)
        messages = weights.unsqueeze(2) * (value[senders] + sent.view(-1, self.heads, width))
        x = x + self.out(pool_sum(messages.flatten(1), receivers, nodes))
        return x + self.feed_forward(x)


def attention_weights(logits: Tensor, envelope: Tensor, receivers: Tensor, nodes: int) -> Tensor:
    """envelope exp(logits) / (1 + its sum at the receiver): logits (E, heads), envelope (E, 1) -> (E, heads).

    The envelope takes an edge out smoothly at the cutoff; the one lets the last edge of a node go smoothly too.
    Computes in the precision of the envelope.
    """
    logits = logits.to(envelope.dtype)
    index = receivers.unsqueeze(1).expand_as(logits)
    largest = logits.new_zeros((nodes, logits.shape[1])).scatter_reduce(0, index, logits.detach(), "amax")
    weights = envelope * (logits - largest[receivers]).exp()
    total = (-largest).exp() + pool_sum(weights, receivers, nodes)
    return weights / total[receivers]


def _centred(batch: Batch, positions: Tensor) -> Tensor:
    """Positions from the mean of their graph; zero in periodic graphs, where only differences mean something."""
    centres = pool_mean(positions, batch.batch, batch.num_graphs)
    periodic = batch.pbc.any(dim=1)[batch.batch]
    return (positions - centres[batch.batch]).masked_fill(periodic.unsqueeze(1), 0.0)


def _check_options(options: dict[str, Any]) -> None:
    """Raise TypeError for an option that the backbone does not have, UserError for a block that is not here; all others
    mean nothing here.
    """
    if options.get("coarse_layers") or (options.get("reciprocal") or {}).get("charges"):
        raise UserError(
            "model: found coarse_layers or reciprocal.charges above 0 with name=transformer, which has no such block; "
            "expected 0."
        )
    unknown = options.keys() - inspect.signature(Backbone).parameters.keys()
    if unknown:
        raise TypeError(f"unexpected options {', '.join(sorted(unknown))}")
