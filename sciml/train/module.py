"""The Lightning module: a model, its objective, its optimizer and its schedule."""

from functools import partial
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor

from sciml.data.datamodule import LoadedBatch
from sciml.models.model import Model
from sciml.objectives.supervised import Supervised
from sciml.train.compiled import Forward, compiled_forward
from sciml.train.optimizer import build_optimizer, learning_rate_factor
from sciml.train.process import sum_over_ranks
from sciml.train.validation import StoreLosses

if TYPE_CHECKING:
    from sciml.train.guard import Guard


class Module(lightning.LightningModule):
    """Trains a Model on micro-batches.

    Lightning divides each micro-batch's loss by the number of accumulated micro-batches and averages gradients over
    ranks; both are undone here, because the denominators already count the labels of the whole optimizer step.
    ``step_losses`` holds each target's share of the running optimizer step's loss; ``package`` is what a package of
    the model says beside its weights, kept in every checkpoint. ``widths`` are those of
    :func:`sciml.train.optimizer.relative_widths`, ``factors`` {parameter: its share of the learning rate}. With
    ``compiled`` the training pass is compiled; validation is not. ``guard`` decides whether the update of a step
    is made; ``left_out`` tells that it was not.
    """

    _forward: Forward
    _store_losses: StoreLosses

    def __init__(
        self,
        model: Model,
        objective: Supervised,
        options: Any,
        total_steps: int,
        widths: dict[str, float] | None = None,
        compiled: bool = False,
        factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.options = options
        self.total_steps = total_steps
        self.compiled = compiled
        self.widths, self.factors = widths, factors
        self.validations = 1
        self.guard: Guard | None = None
        self.left_out = False
        self.package: dict[str, Any] = {}
        self.step_losses: dict[str, Tensor] = {}
        self._validation_losses: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        self._forward = compiled_forward(self.model) if self.compiled else partial(self.model, create_graph=True)

    def training_step(self, micro_batch: LoadedBatch, index: int) -> Tensor:
        predictions = self._forward(micro_batch.batch, micro_batch.kind)
        loss, shares = self.objective(self.model, predictions, micro_batch)
        _accumulate(self.step_losses, shares)
        if self.trainer.world_size > 1:
            # Every parameter takes part in every backward pass, as DistributedDataParallel expects.
            loss = loss + 0.0 * torch.stack([p.sum() for p in self.model.parameters()]).sum()
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def on_validation_epoch_start(self) -> None:
        self._validation_losses = {}
        trainer: Any = self.trainer
        sources = trainer.datamodule.validation.sources
        self._store_losses = StoreLosses(sources, list(self.objective.terms), self.device)

    def validation_step(self, micro_batch: LoadedBatch, index: int) -> None:
        predictions = self.model(micro_batch.batch, micro_batch.kind)
        _accumulate(self._validation_losses, self.objective(self.model, predictions, micro_batch)[1])
        self._store_losses.add(micro_batch.items, self.objective.of_graphs(self.model, predictions, micro_batch))

    def on_validation_epoch_end(self) -> None:
        losses = sum_over_ranks(self._validation_losses, self.objective.terms, self.trainer.strategy)
        for target, loss in losses.items():
            self.log(f"val/{target}", loss)
        self.log("val/loss", sum(losses.values()))
        for name, loss in self._store_losses.means(self.trainer.strategy).items():
            self.log(f"val/{name}", loss)

    def optimizer_step(self, epoch: int, index: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Compute the last gradients of the step, and update the parameters where the guard lets it.

        Nothing is multiplied by zero to leave a step out, for zero times NaN is NaN: the optimizer is not called. A
        strategy whose engine has to hear of that has a method ``leave_out(optimizer)``.
        """
        if self.guard is None or self.trainer.fit_loop._should_accumulate():
            super().optimizer_step(epoch, index, optimizer, optimizer_closure)
            return
        loss = optimizer_closure()
        self.left_out = not self.guard.admits(self.trainer, self)
        if not self.left_out:
            optimizer.step(closure=lambda: loss)
        elif hasattr(self.trainer.strategy, "leave_out"):
            self.trainer.strategy.leave_out(optimizer)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip the norm of all gradients here: Lightning refuses to with a fused optimizer in mixed precision."""
        if self.options.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.gradient_clip)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.options, self.widths, self.factors)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, step: int) -> float:
        options = self.options
        return learning_rate_factor(
            step, options.warmup_steps, self.total_steps, options.final_fraction, options.schedule
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["total_steps"] = self.total_steps
        checkpoint["validations"] = self.validations
        checkpoint["package"] = self.package

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.total_steps = checkpoint["total_steps"]


def _accumulate(totals: dict[str, Tensor], shares: dict[str, Tensor]) -> None:
    for target, share in shares.items():
        totals[target] = totals.get(target, 0.0) + share.detach()
