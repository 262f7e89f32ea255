"""ZeRO by DeepSpeed (Rajbhandari et al., 2020): optimizer states, gradients and parameters cut among the ranks."""

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.ops import __compatible_ops__ as compatible_ops
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor

from sciml.train.sharding import WholeCheckpoints, part_of, whole

BUCKET = 2**24  # numbers sent at once; the library's own 5e8 would hold 2 GB of buffers
MOMENTS = ("exp_avg", "exp_avg_sq")


class Unchanged(DeepSpeedPrecision):
    """Full precision that leaves float64 buffers and inputs alone, and does not divide the loss a second time.

    Lightning has divided the loss by the number of micro-batches already; DeepSpeed would do it again.
    """

    def __init__(self) -> None:
        super().__init__("32-true")

    def convert_module(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def backward(self, tensor: Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        model.trainer.model.backward(tensor, scale_wrt_gas=False)


class Zero(WholeCheckpoints, DeepSpeedStrategy):
    """DeepSpeed's ``stage`` 1 to 3 in full precision, on GPUs and, over gloo, on CPUs.

    ``gradient_clip`` is the largest norm of the gradient, which DeepSpeed clips itself. Checkpoints hold whole tensors
    in the form that an unsharded run has, so that a run can go on under another strategy.
    """

    clips_gradients = True

    def __init__(self, stage: int, gradient_clip: float | None) -> None:
        super().__init__(
            config={
                "train_micro_batch_size_per_gpu": 1,  # for its own log alone
                "gradient_clipping": gradient_clip or 0.0,  # where the key is missing, DeepSpeed clips to 1
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {
                    "stage": stage,
                    "overlap_comm": False,
                    "contiguous_gradients": True,
                    "reduce_bucket_size": BUCKET,
                    "allgather_bucket_size": BUCKET,
                    # Small parameters would stay whole, where a moving average put into the parts would not reach them.
                    "stage3_param_persistence_threshold": 0,
                },
            }
        )
        self.stage = stage
        self.wants_every_prediction = stage == 3  # its ranks gather the parameters of each module together
        self._groups: list[dict[str, Any]] = []

    def setup_environment(self) -> None:
        """As in Lightning, without its refusal of CPUs."""
        assert self.parallel_devices is not None
        if self.parallel_devices[0].type == "cpu":
            self.parallel_devices = [torch.device("cpu", index) for index in range(len(self.parallel_devices))]
            # gloo does all there is to do; DeepSpeed would compile a library of its own for a minute first.
            compatible_ops["deepspeed_shm_comm"] = False
        self.precision_plugin = Unchanged()
        DDPStrategy.setup_environment(self)

    def _init_optimizers(self) -> Any:
        """Remember the parameters of each group: DeepSpeed puts flat ones in their place."""
        optimizer, scheduler = super()._init_optimizers()
        self._groups = [dict(group) for group in optimizer.param_groups]
        return optimizer, scheduler

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The state of AdamW as without any cut; every rank must call it."""
        base = self._base()
        steps = [state["step"] for state in base.state.values() if "step" in state]
        state: dict[int, dict[str, Any]] = {}
        if steps:
            self._link_states()
        groups, index = [], 0
        live = iter(base.param_groups)
        for group in self._groups:
            values = next(live) if group["params"] else group
            ids = list(range(index, index + len(group["params"])))
            index += len(ids)
            groups.append({**{key: value for key, value in values.items() if key != "params"}, "params": ids})
            if steps:
                for number, parameter in zip(ids, group["params"], strict=True):
                    moments = {key: self._moment(parameter, key).cpu() for key in MOMENTS}
                    state[number] = {"step": steps[0].detach().cpu().clone(), **moments}
        return {"state": state, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Cut the whole state of a checkpoint among the ranks; the parameters are loaded before it."""
        (saved,) = checkpoint["optimizer_states"]
        base = self._base()
        parameters = [parameter for group in self._groups for parameter in group["params"]]
        groups = [group for group in saved["param_groups"] if group["params"]]
        for group, values in zip(base.param_groups, groups, strict=True):
            group.update({key: value for key, value in values.items() if key != "params"})
        if saved["state"]:
            self._make_states(base, saved["state"][0]["step"])
        for number, parameter in enumerate(parameters):
            if self.stage == 3:
                safe_set_local_fp32_param(parameter, parameter.ds_tensor)
            else:
                safe_set_full_fp32_param(parameter, parameter.detach())
            for key in MOMENTS if saved["state"] else ():
                value = saved["state"][number][key].to(self.root_device, torch.float32)
                if self.stage == 3:
                    safe_set_local_optimizer_state(parameter, part_of(parameter, value), key)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)

    def on_validation_end(self) -> None:
        """Put the parameters that were gathered away: they are those of the moving average, training has its own."""
        if self.stage == 3:
            self.deepspeed_engine.optimizer.parameter_offload.partition_all_parameters()

    def gradient_norm(self, module: Any) -> Tensor:
        """The norm of all gradients of a step (), of which each rank keeps a part; every rank must call it."""
        squares = torch.zeros((), dtype=torch.float64, device=self.root_device)
        for gradient in self._gradients():
            squares += gradient.double().square().sum()
        torch.distributed.all_reduce(squares)
        return squares.sqrt()

    def optimizer_step(self, optimizer: Any, closure: Any, model: Any = None, **kwargs: Any) -> Any:
        """Compute the last gradients of a micro-batch, and update the parameters where it is the last of its step."""
        steps = self.deepspeed_engine.global_steps
        found = super().optimizer_step(optimizer, closure, model, **kwargs)
        if self.deepspeed_engine.global_steps > steps:
            self._forget_gradients()
        return found

    def leave_out(self, optimizer: Any) -> None:
        """Drop the gradients of a step: what is not finite DeepSpeed leaves out by itself, and counts on."""
        for gradient in self._gradients():
            gradient.fill_(torch.nan)
        self.deepspeed_engine.step()
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        """Under ZeRO-3 the first micro-batch of a step overwrites the gradients of those parameters alone that it
        reaches, and never the padding of a rank's part: without this, what is left would be added to the next step.
        """
        if self.stage == 3:
            self.deepspeed_engine.optimizer.grad_partitions_flat_buffer.zero_()

    def _gradients(self) -> Iterator[Tensor]:
        """This rank's parts of the summed gradients, between the last backward pass of a step and its update."""
        for gradients in self.deepspeed_engine.optimizer.averaged_gradients.values():
            yield from gradients or ()

    def _base(self) -> torch.optim.Optimizer:
        """The optimizer of the flat parts, inside DeepSpeed's."""
        return self.deepspeed_engine.optimizer.optimizer

    def _moment(self, parameter: Tensor, key: str) -> Tensor:
        if self.stage == 3:
            return whole(parameter, safe_get_local_optimizer_state(parameter, key))
        return safe_get_full_optimizer_state(parameter, key)

    def _make_states(self, base: torch.optim.Optimizer, step: Tensor) -> None:
        """What the first step would make: empty moments of the flat parts, known to DeepSpeed."""
        optimizer = self.deepspeed_engine.optimizer
        flat = optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        for part in flat:
            base.state[part] = {"step": step.clone(), **{key: torch.zeros_like(part) for key in MOMENTS}}
        self._link_states()

    def _link_states(self) -> None:
        """Let DeepSpeed know where in the flat moments those of each parameter lie."""
        optimizer = self.deepspeed_engine.optimizer
        if self.stage < 3:
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
