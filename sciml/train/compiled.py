"""The training step as compiled graphs: forward with the forces inside it, and the backward pass through both.

By default torch.compile takes the derivative inside a forward pass out of the graph and loses its dependence on the
parameters: their gradients are then wrong without an error. Tracing that derivative (``trace_autograd_ops``) as part of
one whole graph is right, and a test holds its gradients to the eager ones; nothing else is offered here.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric.data import Batch

from sciml.errors import UserError
from sciml.models.embedding import without_spurions
from sciml.models.model import Model, floating_inputs_to

Forward = Callable[[Batch, str], dict[str, Tensor]]
MOST_GRAPHS = 64  # kinds, labels and sizes of one each make a graph of their own


def compiled_forward(model: Model, backend: str = "inductor") -> Forward:
    """Return the training pass ``(batch, kind) -> predictions`` of ``model``, compiled when it is first called.

    Raises UserError where this torch cannot trace derivatives, and at the call where a part of the model cannot be
    traced or compiled.
    """
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise UserError(
            f"trainer.compile: torch {torch.__version__} cannot trace the forces inside a compiled step, expected "
            "torch 2.11 or later; use trainer.compile=false."
        )
    if model.far_field.ewald:
        raise UserError(
            "trainer.compile: found true with sums over waves (model.reciprocal.charges or electrostatics of a head), "
            "whose sizes a compiler cannot know; use trainer.compile=false."
        )
    function = torch.compile(model.forward, fullgraph=True, dynamic=True, backend=backend)
    ready: set[str] = set()

    def forward(batch: Batch, kind: str) -> dict[str, Tensor]:
        if kind not in ready:  # an eager pass builds the kernels and whatever is cached, which cannot be traced
            with torch.no_grad():
                model(batch, kind)
            ready.add(kind)
        batch = _with_leaves(batch, model.dtype)
        if not model.spurions:
            batch = without_spurions(batch, kind)
        settings = {"trace_autograd_ops": True, "recompile_limit": MOST_GRAPHS}
        with torch._dynamo.config.patch(settings):
            try:
                return function(batch, kind, create_graph=True)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"trainer.compile: the model cannot be compiled as one graph ({reason}); use trainer.compile=false."
                ) from error

    return forward


def _with_leaves(batch: Batch, dtype: torch.dtype) -> Batch:
    """A shallow copy of the batch in which positions (n, 3) and a strain of zero (B, 3, 3) can be differentiated.

    All floating inputs have the model's ``dtype``, so that nothing is left to be converted, and copied, in the graph.
    """
    batch = copy.copy(floating_inputs_to(batch, dtype))
    batch.positions = batch.positions.detach().to(dtype).requires_grad_()
    batch.strain = batch.positions.new_zeros((batch.num_graphs, 3, 3)).requires_grad_()
    return batch
