"""The Lightning module: a model, its objective, its optimizer and its schedule."""

from functools import partial
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor

from sciml.data.graph_dataset import LoadedBatch
from sciml.models.model import Model
from sciml.objectives.supervised import Supervised
from sciml.train.compiled import Forward, compiled_forward
from sciml.train.optimizer import build_optimizer, learning_rate_factor
from sciml.train.process import sum_over_ranks
from sciml.train.split import SplitStep
from sciml.train.strategy import clips_gradients, wants_every_prediction
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
    is made; ``left_out`` tells that it was not. With ``split`` a step that does not fit into memory is
    computed again in pieces (:mod:`sciml.train.split`).
    """

    _forward: Forward
    _split: SplitStep | None
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
        split: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.options = options
        self.total_steps = total_steps
        self.compiled, self.split = compiled, split
        self.widths, self.factors = widths, factors
        self.validations = 1
        self.guard: Guard | None = None
        self.left_out = False
        self.package: dict[str, Any] = {}
        self.step_losses: dict[str, Tensor] = {}
        self._validation_losses: dict[str, Tensor] = {}

    def on_fit_start(self) -> None:
        self._forward = compiled_forward(self.model) if self.compiled else partial(self.model, create_graph=True)
        anywhere = partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        self._split = SplitStep(self._backward, self._forget, anywhere) if self.split else None

    def configure_model(self) -> None:
        """Let a strategy that cuts the model among the ranks do so."""
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None:
            shard(self.model)

    def training_step(self, micro_batch: LoadedBatch, index: int) -> Tensor:
        if self._split is not None:
            if index % self.trainer.accumulate_grad_batches == 0:
                self._split.begin()
            self._split.add(micro_batch)
            if self.trainer.world_size == 1:
                return 0.0 * next(p for p in self.model.parameters() if p.requires_grad).sum()
            return zero_of_all(self.model)  # its backward pass makes the ranks sum what each has by itself
        loss = self._loss(micro_batch)
        if self.trainer.world_size > 1:
            loss = loss + zero_of_all(self.model)
        return loss * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def _loss(self, micro_batch: LoadedBatch) -> Tensor:
        predictions = self._forward(micro_batch.batch, micro_batch.kind)
        loss, shares = self.objective(self.model, predictions, micro_batch)
        _accumulate(self.step_losses, shares)
        if wants_every_prediction(self.trainer.strategy):
            loss = loss + zero_of_predictions(predictions)
        return loss

    def _backward(self, micro_batch: LoadedBatch) -> None:
        """Add the gradients of a micro-batch to those of this rank, outside of mixed precision as Lightning would."""
        loss = self._loss(micro_batch) * self.trainer.world_size
        with torch.autocast(self.device.type, enabled=False):
            loss.backward()

    def _forget(self) -> None:
        """Drop what the running optimizer step has summed."""
        self.model.zero_grad(set_to_none=True)
        self.step_losses = {}

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Lightning does this after the first training step, when there are gradients already where steps are split."""
        if self._split is None:
            super().optimizer_zero_grad(*args, **kwargs)

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
        if self.options.gradient_clip is not None and not clips_gradients(self.trainer.strategy):
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


def zero_of_all(model: torch.nn.Module) -> Tensor:
    """A zero () that every parameter takes part in, as those who sum gradients over ranks expect of a backward pass.

    Parameters that ZeRO-3 has put away take no part: it sums what there is, which is the same on every rank.
    """
    present = [parameter.sum() for parameter in model.parameters() if not hasattr(parameter, "ds_tensor")]
    return 0.0 * torch.stack(present).sum() if present else torch.zeros((), device=next(model.buffers()).device)


def zero_of_predictions(predictions: dict[str, Tensor]) -> Tensor:
    """A zero () that every prediction takes part in, whether this rank has labels for it or not."""
    finite = [value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for value in predictions.values()]
    return 0.0 * torch.stack([value.sum().double() for value in finite]).sum()


def _accumulate(totals: dict[str, Tensor], shares: dict[str, Tensor]) -> None:
    for target, share in shares.items():
        totals[target] = totals.get(target, 0.0) + share.detach()
