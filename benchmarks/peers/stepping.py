"""One training step in three ways; needs torch alone, so both sides of a comparison import it.

`eager` as written; `compiled`: loss, forces and gradients by torch.compile, without breaks; `captured`: the whole step,
optimizer included, replayed as one CUDA graph. Each in both precisions of torch's matrix products: "highest" is single
precision, "high" lets a GPU use TF32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MODES = ("eager", "compiled", "captured")
PRECISIONS = ("highest", "high")
FIRST_STEPS = 4  # before a capture, and what every mode is held against the eager one by
TOLERANCE = 1e-3  # of the loss after them


class Training:
    """A model, its optimizer, and a loss of fixed tensors.

    Attributes:
        model: whose parameters are trained.
        optimizer: of them.
        loss: without arguments, forces with their graph included.
        clip: largest norm of the gradient.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], clip: float
    ) -> None:
        self.model, self.optimizer, self.loss, self.clip = model, optimizer, loss, clip

        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(self) -> tuple[Tensor, ...]:
        """The loss and its gradient to every parameter, zero where it does not depend on one."""
        value = self.loss()
        found = torch.autograd.grad(value, self.parameters, allow_unused=True, materialize_grads=True)
        return value.detach(), *found

    def step(self, gradients: Callable[[], tuple[Tensor, ...]]) -> Tensor:
        """One step; the loss before it, not waited for."""
        loss, *found = gradients()
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return loss

    def in_mode(self, mode: str) -> Callable[[], Tensor]:
        """The step in one of `MODES`; a captured one has made `FIRST_STEPS` steps."""
        if mode == "eager":
            return lambda: self.step(self.gradients)
        if mode == "compiled":
            torch._dynamo.config.trace_autograd_ops = True  # without it gradients are silently wrong
            self.loss()  # what is made on first use is there before the tracer comes
            compiled = torch.compile(self.gradients, fullgraph=True)
            return lambda: self.step(compiled)
        return self._captured()

    def _captured(self) -> Callable[[], Tensor]:
        for group in self.optimizer.param_groups:
            group["capturable"] = True
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(FIRST_STEPS):
                self.step(self.gradients)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.step(self.gradients)

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay


def run(make: Callable[[], Training], mode: str, device: str, repeats: int) -> dict[str, Any]:
    """Seconds of each of `repeats` steps, peak memory of the device, and the losses that tell a right mode from a
    wrong one.
    """
    training = make()
    cuda = device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    step = training.in_mode(mode)
    if mode != "captured":
        for _ in range(FIRST_STEPS):
            step()
    losses = [float(step())]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        losses.append(float(step()))
        seconds.append(time.perf_counter() - start)
    found: dict[str, Any] = {"seconds": seconds, "median_seconds": statistics.median(seconds), "losses": losses}
    return found | ({"peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20} if cuda else {})


def best(modes: dict[str, dict[str, Any]]) -> str:
    """The fastest mode whose loss follows that of the eager one."""
    expected = modes["eager"]["losses"][0]
    right = [
        name
        for name, found in modes.items()
        if "losses" in found and abs(found["losses"][0] - expected) <= TOLERANCE * abs(expected)
    ]
    return min(right, key=lambda name: modes[name]["median_seconds"])


def every_mode(
    make: Callable[[], Training],
    device: str,
    repeats: int,
    modes: Sequence[str] = MODES,
    keep: Callable[[dict[str, Any]], object] = lambda found: None,
) -> dict[str, dict[str, Any]]:
    """For each of `PRECISIONS` each mode that runs here, or the reason why it does not, and the best of them.

    `keep` gets what is there after each mode: a process that is out of time has lost the rest alone.
    """
    before = torch.get_float32_matmul_precision()
    found: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS if device == "cuda" else PRECISIONS[:1]:
        torch.set_float32_matmul_precision(precision)
        ran: dict[str, dict[str, Any]] = {}
        for mode in modes:
            ran[mode] = _attempt(make, mode, device, repeats)
            found[precision] = {"modes": ran, "mode": best(ran)}
            keep(found)
    torch.set_float32_matmul_precision(before)
    return found


def _attempt(make: Callable[[], Training], mode: str, device: str, repeats: int) -> dict[str, Any]:
    if mode == "captured" and device != "cuda":
        return {"skipped": "graphs are captured on a GPU only"}
    try:
        return run(make, mode, device, repeats)
    except Exception as error:  # a mode that a library does not allow is no failure of the others
        if mode == "eager":
            raise
        return {"skipped": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}
