"""What is independent of the backend: the definition, the symmetry, the torch operators, refused input."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from e3nn import o3
from torch import Tensor

from sciml_kernels import Edges, Path, Spec, conv, conv_radial, product
from sciml_kernels.edges import Tables
from tests.kernels.problems import SPECS, edges, inputs


@pytest.fixture
def double() -> Iterator[None]:
    """e3nn computes its matrices and coefficients in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_definition_equals_e3nn(double: None) -> None:
    """TensorProduct in mode 'uvu' on gathered features, then a sum at the receivers."""
    spec, graph = SPECS["unequal multiplicities"], edges(6, 25)
    x, y, w = inputs(spec, 6, 25, torch.float64)
    instructions = [(path.x, path.y, path.out, "uvu", True) for path in spec.paths]
    tensor_product = o3.TensorProduct(
        spec.irreps_x, spec.irreps_y, spec.irreps_out, instructions,
        irrep_normalization="component", path_normalization="none", shared_weights=False, internal_weights=False,
    )  # fmt: skip
    messages = tensor_product(_channel_major(x, spec.irreps_x)[graph.senders], y, w)
    expected = torch.zeros(6, spec.dim_out, dtype=torch.float64).index_add(0, graph.receivers, messages)
    for backend in ("reference", "cpu"):
        found = _channel_major(conv(x, y, w, graph, spec, backend), spec.irreps_out)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def _channel_major(rows: Tensor, irreps: o3.Irreps) -> Tensor:
    """From (dim, mul) blocks to e3nn's (mul, dim)."""
    parts = zip(irreps.slices(), irreps, strict=True)
    return torch.cat([rows[:, s].unflatten(1, (ir.dim, mul)).mT.flatten(1) for s, (mul, ir) in parts], 1)


def _representation(degree: int, rotation: Tensor) -> Tensor:
    """D of a proper rotation from e3nn's harmonics: its own D matrices keep the precision of their first caller."""
    points = torch.randn(50, 3, dtype=torch.float64)
    still, moved = (o3.spherical_harmonics(degree, at, True) for at in (points, points @ rotation.T))
    return torch.linalg.lstsq(still, moved).solution.T


def _rotate(rows: Tensor, irreps: o3.Irreps, rotation: Tensor, inversion: int) -> Tensor:
    parts = zip(irreps.slices(), irreps, strict=True)
    blocks = [
        (ir.p**inversion * _representation(ir.l, rotation), rows[:, s].unflatten(1, (ir.dim, mul)))
        for s, (mul, ir) in parts
    ]
    return torch.cat([torch.einsum("ij,rjc->ric", matrix, block).flatten(1) for matrix, block in blocks], 1)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("inversion", [0, 1], ids=["proper", "improper"])
def test_equivariance(name: str, backend: str, inversion: int, double: None) -> None:
    spec, graph = SPECS[name], edges(6, 25)
    x, y, w = inputs(spec, 6, 25, torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turn = (rotation * torch.linalg.det(rotation), inversion)
    turned_last = _rotate(conv(x, y, w, graph, spec, backend), spec.irreps_out, *turn)
    turned = _rotate(x, spec.irreps_x, *turn), _rotate(y, spec.irreps_y, *turn)
    torch.testing.assert_close(conv(*turned, w, graph, spec, backend), turned_last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("inversion", [0, 1], ids=["proper", "improper"])
def test_equivariance_of_the_others(backend: str, inversion: int, double: None) -> None:
    """The convolution with the radial layer inside, and the product."""
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    turn = (rotation * torch.linalg.det(rotation), inversion)
    spec, graph = SPECS["separate"], edges(6, 25)
    x, y, _ = inputs(spec, 6, 25, torch.float64)
    h, weight = torch.randn(25, 4), torch.randn(4, spec.dim_w)
    turned_last = _rotate(conv_radial(x, y, h, weight, graph, spec, backend), spec.irreps_out, *turn)
    turned = _rotate(x, spec.irreps_x, *turn), _rotate(y, spec.irreps_y, *turn)
    torch.testing.assert_close(conv_radial(*turned, h, weight, graph, spec, backend), turned_last, rtol=0, atol=1e-10)
    spec = SPECS["y channels"]
    x, y, w = inputs(spec, 6, 6, torch.float64)
    turned_last = _rotate(product(x, y, w, spec, backend), spec.irreps_out, *turn)
    turned = _rotate(x, spec.irreps_x, *turn), _rotate(y, spec.irreps_y, *turn)
    torch.testing.assert_close(product(*turned, w, spec, backend), turned_last, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gather", [True, False], ids=["conv", "product"])
def test_opcheck(gather: bool) -> None:
    spec, graph = SPECS["separate"], edges(6, 25)
    x, y, w = inputs(spec, 6, 25 if gather else 6, torch.float64)
    rest = (*(graph.tables("cpu", True) if gather else Tables()), spec.key, "cpu")
    g = torch.randn(6, spec.dim_out, dtype=torch.float64)
    vx, vy, vw = (torch.randn_like(tensor) for tensor in (x, y, w))
    leaves = [tensor.requires_grad_() for tensor in (x, y, w)]
    operators = torch.ops.sciml_kernels
    torch.library.opcheck(operators.trilinear.default, (*leaves, *rest))
    torch.library.opcheck(operators.trilinear_backward.default, (g.requires_grad_(), *leaves, *rest, "xyw"))
    arguments = (vx, vy, vw, g.detach(), *(leaf.detach() for leaf in leaves), *rest, "gxyw")
    torch.library.opcheck(operators.trilinear_double_backward.default, arguments)


def test_spec_survives_its_key() -> None:
    for spec in SPECS.values():
        again = Spec.from_key(spec.key)
        assert again == spec
        assert hash(again) == hash(spec)


def test_constructors() -> None:
    separate = Spec.separate("8x0e+8x1o", "0e+1o+2e+3o", "0e+1o+2e+3o")
    summed = Spec.summed("8x0e+8x1o", "0e+1o+2e+3o", "0e+1o+2e+3o")
    assert len(separate.paths) == len(summed.paths) == len(separate.irreps_out) == 10
    assert str(summed.irreps_out) == "8x0e+8x1o+8x2e+8x3o"
    assert separate.channels == 8
    ordered = Spec.summed("8x0e+8x1o", "8x0e+8x1o", "0e+1o", y_channels=True, ordered=True)
    assert [path.degrees for path in ordered.paths] == [(0, 0, 0), (1, 1, 0), (0, 1, 1)]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_three_dimensional_and_flat_tensors_agree(backend: str) -> None:
    spec, graph = SPECS["separate"], edges(6, 25)
    x, y, w = inputs(spec, 6, 25, torch.float64)
    out = conv(x.view(6, 4, 20), y, w.view(25, -1, 20), graph, spec, backend)
    assert out.shape == (6, spec.dim_out // 20, 20)
    torch.testing.assert_close(out.flatten(1), conv(x, y, w, graph, spec, backend))


def test_strided_input() -> None:
    spec, graph = SPECS["separate"], edges(6, 25)
    x, y, w = inputs(spec, 6, 25, torch.float64)
    strided = x.T.contiguous().T, y.T.contiguous().T, w.T.contiguous().T
    torch.testing.assert_close(conv(*strided, graph, spec, "cpu"), conv(x, y, w, graph, spec, "cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 80)}, r"x: found shape \(5, 80\), expected \(6, 80\) or \(6, 4, 20\)"),
        ({"y": torch.zeros(25, 4)}, r"y: found shape \(25, 4\), expected \(25, 9\)"),
        ({"w": torch.zeros(24, 140)}, r"w: found shape \(24, 140\), expected \(25, 140\)"),
        ({"w": torch.zeros(25, 140, dtype=torch.float64)}, "w: found torch.float64, expected torch.float32 as x"),
        ({"y": torch.zeros(25, 9, device="meta")}, "y: found on meta, expected on cpu as x"),
        ({"backend": "triton"}, "backend: 'triton' is not possible, x is on cpu, expected on a GPU"),
        ({"backend": "cuda"}, "backend: found 'cuda', expected"),
        ({"spec": "0e"}, "spec: found str, expected Spec"),
        ({"edges": torch.zeros(2, 25)}, "edges: found Tensor, expected Edges"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    spec = SPECS["separate"]
    x, y, w = inputs(spec, 6, 25, torch.float32)
    arguments = {"x": x, "y": y, "w": w, "edges": edges(6, 25), "spec": spec, **change}
    with pytest.raises(ValueError, match=message):
        conv(**arguments)  # type: ignore[arg-type]


def test_bad_product() -> None:
    spec = SPECS["y channels"]
    x, y, w = inputs(spec, 6, 6, torch.float32)
    with pytest.raises(ValueError, match=r"y: found shape \(5, 68\), expected \(6, 68\) or \(6, 4, 17\)"):
        product(x, y[:5], w, spec)


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        ([0, 1], [1, 0], "receivers: found in no ascending order, expected edges sorted by receiver"),
        ([0, 1], [0, 3], r"receivers: found 0\.\.3, expected within 0\.\.2"),
        ([0, -1], [0, 1], r"senders: found -1\.\.0, expected within 0\.\.2"),
        ([0], [0, 1], r"receivers: found \(2,\) on cpu, expected as senders \(1,\) on cpu"),
    ],
)
def test_bad_edges(senders: list[int], receivers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edges(torch.tensor(senders), torch.tensor(receivers), 3)
    with pytest.raises(ValueError, match=r"senders: found torch\.int32"):
        Edges(torch.tensor(senders, dtype=torch.int32), torch.tensor(receivers), 3)
    with pytest.raises(ValueError, match="^receivers: found list, expected Tensor"):
        Edges(torch.tensor(senders), receivers, 3)  # type: ignore[arg-type]


def test_bad_specs() -> None:
    with pytest.raises(ValueError, match="paths: none couples 2x0e"):
        Spec.summed("2x0e", "1o", "2e")
    with pytest.raises(ValueError, match="multiplicities"):
        Spec(o3.Irreps("2x0e"), o3.Irreps("0e"), o3.Irreps("3x0e"), Spec.summed("2x0e", "0e", "0e").paths)
    slots = (o3.Irreps("2x0e"), o3.Irreps("0e"), o3.Irreps("2x0e"))
    for slot, name in itertools.product((-1, 1), ("x", "y", "out")):
        path = dataclasses.replace(Path(0, 0, 0, (0, 0, 0)), **{name: slot})
        message = rf"^paths: found slot {slot} of irreps_{name} in .*, expected within 0\.\.0"
        with pytest.raises(ValueError, match=message):
            Spec(*slots, (path,))


def test_tangents_of_forward_mode_are_never_lost() -> None:
    spec, graph = SPECS["separate"], edges(6, 25)
    x, y, w = inputs(spec, 6, 25, torch.float64)
    change = torch.randn_like(x)

    def along(backend: str) -> Tensor:
        tangent: Tensor = torch.func.jvp(lambda x: conv(x, y, w, graph, spec, backend), (x,), (change,))[1]
        return tangent

    torch.testing.assert_close(along("reference"), conv(change, y, w, graph, spec))  # linear in x
    with pytest.raises(NotImplementedError, match="forward-mode derivatives: found a tangent"):
        along("cpu")
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(conv(x, y, w, graph, spec), conv(x, y, w, graph, spec, "cpu"))  # no tangent, no refusal


def test_compiled_gradients_equal_eager_ones() -> None:
    spec, graph = SPECS["separate"], edges(6, 25)
    leaves = [tensor.requires_grad_() for tensor in inputs(spec, 6, 25, torch.float64)]

    def loss(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return conv(x, y, w, graph, spec).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)


def test_compiled_gradients_of_the_product_equal_eager_ones() -> None:
    spec = SPECS["y channels"]
    leaves = [tensor.requires_grad_() for tensor in inputs(spec, 5, 5, torch.float64)]

    def loss(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return product(x, y, w, spec).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for found, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        torch.testing.assert_close(found, expected)
