"""Elementwise losses: (prediction, target) -> loss of each label; the sum and the denominator are the objective's."""

import torch
from torch import Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """(p - t)^2, elementwise."""
    return (prediction - target).square()


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """|p - t|, elementwise."""
    return (prediction - target).abs()


def huber(prediction: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Quadratic up to ``delta``, linear beyond (Huber, 1964), elementwise."""
    return torch.nn.functional.huber_loss(prediction, target, reduction="none", delta=delta)


def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy in nats of logits (m, classes) and classes (m,), one value a label."""
    return torch.nn.functional.cross_entropy(prediction, target, reduction="none")
