"""Elementwise losses: (prediction, target) -> loss of each label; the sum and the denominator are the objective's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sciml.errors import UserError


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(p - t)^2, elementwise."""
    return (prediction - target).square()


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """|p - t|, elementwise."""
    return (prediction - target).abs()


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Quadratic up to ``delta``, linear beyond (Huber, 1964), elementwise."""
    return torch.nn.functional.huber_loss(prediction, target, reduction="none", delta=delta)


def cross_entropy(prediction: Tensor, target: Tensor, class_weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy in nats of logits (m, classes) and classes (m,), one value a label, times the weight of its class.

    Raises UserError where there are not as many weights as classes.
    """
    if class_weights is None:
        return torch.nn.functional.cross_entropy(prediction, target, reduction="none")
    if len(class_weights) != prediction.shape[1]:
        raise UserError(
            f"objective: found {len(class_weights)} class_weights, expected {prediction.shape[1]}, one for each class "
            "in their order."
        )
    weights = prediction.new_tensor(class_weights)
    return torch.nn.functional.cross_entropy(prediction, target, weight=weights, reduction="none")
