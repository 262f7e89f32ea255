"""Who computes a problem: our kernels, their definition, or a published library.

A peer needs no more than its own environment: `.venv-<environment>` in this checkout where there is one, else the
interpreter that runs the benchmark, if the library is installed there. It is never a dependency of this package.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import problems
import torch
from problems import CORRELATION, LMAX, SPECIES, Instance
from torch import Tensor

CHECKOUT = Path(__file__).resolve().parents[2]
Function = Callable[..., Tensor]
Change = Callable[[Tensor], Tensor]


def same(tensor: Tensor) -> Tensor:
    """No change of layout."""
    return tensor


@dataclasses.dataclass
class Prepared:
    """A problem in the hands of a provider.

    Attributes:
        function: of tensors in the provider's layout.
        theirs, ours: changes of layout by place, an index of the arguments or "out"; none where it is the same.
    """

    function: Function
    theirs: dict[int | str, Change] = dataclasses.field(default_factory=dict)
    ours: dict[int | str, Change] = dataclasses.field(default_factory=dict)


def _ours(instance: Instance) -> Prepared:
    return Prepared(problems.function(instance, "auto"))


def _definition(instance: Instance) -> Prepared:
    return Prepared(problems.definition(instance))


def _unfused(instance: Instance) -> Prepared:
    """The last layer of the radial network as a matrix product, then our convolution."""
    from sciml_kernels import Edges, Spec, conv

    graph = Edges(instance.senders, instance.receivers, instance.nodes)
    spec = Spec.from_key(instance.plain["key"])
    return Prepared(lambda x, y, h, weight: conv(x, y, h @ weight, graph, spec))


def _e3nn(instance: Instance) -> Prepared:
    """TensorProduct in mode 'uvu' on gathered features, then index_add; or its spherical harmonics."""
    from e3nn import o3

    if instance.plain["operation"] == "harmonics":
        degrees = list(range(LMAX + 1))
        return Prepared(lambda vectors: o3.spherical_harmonics(degrees, vectors, True, normalization="component"))
    paths = [(*path, "uvu", True) for path in instance.plain["paths"]]
    tensor_product = o3.TensorProduct(
        *map(o3.Irreps, instance.plain["irreps"]), paths, shared_weights=False, internal_weights=False,
        irrep_normalization="component", path_normalization="none",
    ).to(instance.receivers.device)  # fmt: skip

    def convolve(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        messages = tensor_product(x[instance.senders], y, w)
        out = messages.new_zeros(instance.nodes, messages.shape[1])
        return out.index_add(0, instance.receivers, messages)

    return _with_channels_first(convolve, instance)


def _openequivariance(instance: Instance) -> Prepared:
    """Its fused convolution, the deterministic one as ours is."""
    import openequivariance as oeq

    paths = [(*path, "uvu", True) for path in instance.plain["paths"]]
    problem = oeq.TPProblem(
        *map(oeq.Irreps, instance.plain["irreps"]), paths, shared_weights=False, internal_weights=False,
        irrep_normalization="component", path_normalization="none",
    )  # fmt: skip
    operation = oeq.TensorProductConv(problem, deterministic=True)
    order = torch.argsort(instance.senders, stable=True)

    def convolve(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        out: Tensor = operation(x, y, w, instance.receivers, instance.senders, order)
        return out

    return _with_channels_first(convolve, instance)


def _cuequivariance(instance: Instance) -> Prepared:
    """Its channel-wise tensor product with gather and sum inside. On a CPU, and for unequal multiplicities, which its
    fast method does not take, it runs in plain torch. Layout, paths and normalisation are ours.
    """
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    irreps = [cue.Irreps("O3", str(part)) for part in instance.plain["irreps"]]
    keep = cue.Irreps("O3", "+".join(sorted({str(ir) for _, ir in irreps[2]})))
    descriptor = cue.descriptors.channelwise_tensor_product(*irreps[:2], keep)
    flat = descriptor.flatten_coefficient_modes().squeeze_modes()
    uniform = flat.all_same_segment_shape() and instance.receivers.is_cuda
    operation = cuet.SegmentedPolynomial(descriptor.polynomial, method="uniform_1d" if uniform else "naive")
    operation = operation.to(instance.receivers.device)

    def convolve(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        shape = {0: x.new_empty(instance.nodes, 1)}
        (out,) = operation([w, x, y], {1: instance.senders}, shape, {0: instance.receivers})
        return out

    return Prepared(convolve)


def _mace(instance: Instance) -> Prepared:
    """mace-torch's module with our weights in the place of its own; channels stand before components there."""
    from mace.modules.symmetric_contraction import SymmetricContraction, o3  # mace lets this e3nn load its file

    irreps = o3.Irreps(instance.plain["irreps"][0])
    channels, device = irreps[0].mul, instance.species.device
    module = SymmetricContraction(irreps, irreps, CORRELATION, num_elements=SPECIES).to(device)
    one_hot = torch.nn.functional.one_hot(instance.species, SPECIES).float()
    places = []  # (contraction, attribute, length) of each block of our rows
    for contraction in module.contractions:
        lower = [(contraction.weights, str(i), w.shape[1]) for i, w in enumerate(contraction.weights)]
        places += [*reversed(lower), (contraction, "weights_max", contraction.weights_max.shape[1])]
    for owner, name, _ in places:
        del owner._parameters[name]

    def contract(x: Tensor, weights: Tensor) -> Tensor:
        for (owner, name, _), block in zip(places, weights.split([size for *_, size in places], dim=1)):
            owner.__dict__[name] = block
        flat = module(x.transpose(1, 2), one_hot)
        scalars, vectors = flat[:, :channels], flat[:, channels:].unflatten(1, (channels, 3))
        return torch.cat([scalars.unsqueeze(1), vectors.transpose(1, 2)], dim=1)

    return Prepared(contract)


def _with_channels_first(function: Function, instance: Instance) -> Prepared:
    """For libraries whose rows are (multiplicity, component) blocks; the conversion is not timed."""
    x, _, out = (_blocks(irreps) for irreps in instance.plain["irreps"])
    theirs: dict[int | str, Change] = {0: lambda rows: _swapped(rows, x, False)}
    theirs["out"] = lambda rows: _swapped(rows, out, False)
    ours: dict[int | str, Change] = {0: lambda rows: _swapped(rows, x, True)}
    ours["out"] = lambda rows: _swapped(rows, out, True)
    return Prepared(function, theirs, ours)


def _blocks(irreps: str) -> list[tuple[int, int]]:
    """(multiplicity, dimension) of "128x0e+64x1o"."""
    found = [re.fullmatch(r"(\d+)x(\d+)[eo]", part.strip()) for part in irreps.split("+")]
    return [(int(match[1]), 2 * int(match[2]) + 1) for match in found if match]


def _swapped(rows: Tensor, blocks: Sequence[tuple[int, int]], back: bool) -> Tensor:
    parts = rows.split([mul * dim for mul, dim in blocks], dim=1)
    sizes = [block if back else block[::-1] for block in blocks]
    return torch.cat([part.unflatten(1, size).mT.flatten(1) for part, size in zip(parts, sizes)], 1)


@dataclasses.dataclass(frozen=True)
class Provider:
    """Attributes:
    prepare: from an instance to what computes it.
    modules: that it needs.
    environment: the name of its own environment, none for what runs in ours.
    gpu_only: it has no implementation for a CPU.
    """

    prepare: Callable[[Instance], Prepared]
    modules: tuple[str, ...] = ()
    environment: str = ""
    gpu_only: bool = False

    def interpreter(self, device: str) -> tuple[Path | None, str]:
        """The Python that runs it on "cpu" or "cuda", or None and the reason why it cannot be measured here."""
        if self.gpu_only and device == "cpu":
            return None, "it has kernels for GPUs only"
        own = CHECKOUT / f".venv-{self.environment}" / "bin" / "python"
        if self.environment and own.exists():
            return own, ""
        missing = [module for module in self.modules if importlib.util.find_spec(module) is None]
        if missing:
            return None, f"no {own.parents[1].name} in this checkout, and {', '.join(missing)} is not installed"
        return Path(sys.executable), ""


PROVIDERS: dict[str, Provider] = {
    "ours": Provider(_ours),
    "unfused": Provider(_unfused),
    "definition": Provider(_definition),
    "e3nn": Provider(_e3nn, ("e3nn",)),
    "mace": Provider(_mace, ("mace",), "mace"),
    "cuequivariance": Provider(_cuequivariance, ("cuequivariance", "cuequivariance_torch"), "cuequivariance"),
    "openequivariance": Provider(_openequivariance, ("openequivariance",), "openequivariance", gpu_only=True),
}


def prepare(name: str, instance: Instance) -> Any:
    """The problem in the hands of a provider."""
    return PROVIDERS[name].prepare(instance)
