"""Whether this machine has the accelerator and the kernels that a configuration asks for."""

import warnings

import torch

from sciml.errors import UserError
from sciml_kernels.backends import choose


def check_machine(accelerator: str, backend: str, key: str) -> None:
    """Raise UserError where this machine lacks the GPU or the kernels asked for; ``key`` names the accelerator's."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(f"{key}: found gpu, but torch finds no GPU on this machine; use {key}=cpu or auto.")
    if backend in ("auto", "reference"):
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # the sentence below says the same
            choose(backend, torch.empty(0, device=device_of(accelerator)))
    except ValueError as error:
        raise UserError(f"model.{error}; use model.backend=auto.") from None


def device_of(accelerator: str) -> str:
    """The device that ``accelerator`` (cpu, gpu or auto) means here."""
    gpu = torch.cuda.is_available()
    return "cuda" if accelerator == "gpu" or (accelerator == "auto" and gpu) else "cpu"
