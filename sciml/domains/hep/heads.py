"""Classes of jets."""

from torch import Tensor
from torch_geometric.data import Batch

from sciml.models.layers import multilayer_perceptron
from sciml.models.readout import Geometry, Head, HeadContext, pool_mean


class JetClassHead(Head):
    """Class logits (B, classes) from the mean of the particles' features."""

    kind = "jets"
    targets = ("label",)

    def __init__(self, context: HeadContext, hidden: int = 64) -> None:
        super().__init__(context)
        self.readout = multilayer_perceptron([context.channels, hidden, max(1, len(context.classes))])

    def forward(self, features: Tensor, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        return {"label": self.readout(pool_mean(features, batch.batch, batch.num_graphs))}
