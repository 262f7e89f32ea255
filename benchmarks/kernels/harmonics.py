"""Time problem 6, spherical harmonics l <= 3 of 250,000 edges, beside e3nn on this machine.

Writes benchmarks/results/kernels_cpu_harmonics.json.

    python benchmarks/kernels/harmonics.py [--edges N] [--threads N] [--repeats N] [--output FILE]

fp32. Peer: e3nn's o3.spherical_harmonics. Allocator, correctness gate, passes and limit are those of py. Beside the
problem stands what a training step asks for, the whole edge embedding of 6,600 edges, against its definition in torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpu import EDGES, MALLOC, PASSES, TOLERANCE, bandwidth, machine, times

LMAX, BASIS = 3, 8
WIDTH = (LMAX + 1) ** 2


def main() -> int:
    """Measure in a subprocess, for the allocator and the threads are chosen when a process starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, default=250_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=9)
    default = Path(__file__).resolve().parents[1] / "results" / "kernels_cpu_harmonics.json"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.child:
        settings = {"OMP_NUM_THREADS": str(arguments.threads), "OMP_WAIT_POLICY": "PASSIVE", **MALLOC}
        return subprocess.call([sys.executable, *sys.argv, "--child"], env={**os.environ, **settings})
    rows = [harmonics(arguments.edges, arguments.repeats), embedding(EDGES, arguments.repeats)]
    speed = round(bandwidth(arguments.repeats), 1)
    for row in rows:
        row["limit_ms"] = {name: round(count / speed / 1e6, 3) for name, count in row.pop("bytes").items()}
    report = {"machine": machine(arguments.threads), "dtype": "float32", "bandwidth_GBps": speed, "rows": rows}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))
    return 0 if all(row["correct"] for row in rows) else 1


def harmonics(edges: int, repeats: int) -> dict[str, Any]:
    """Problem 6."""
    from e3nn import o3

    from sciml_kernels import spherical_harmonics

    def peer(vectors: Any) -> Any:
        return o3.spherical_harmonics(list(range(LMAX + 1)), vectors, True, normalization="component")

    row = {"problem": 6, "name": f"harmonics l <= {LMAX}", "edges": edges, "bytes": count_bytes(edges, WIDTH)}
    compiled = lambda vectors: spherical_harmonics(vectors, LMAX, backend="cpu")  # noqa: E731
    defined = lambda vectors: spherical_harmonics(vectors, LMAX, backend="reference")  # noqa: E731
    return row | compare(edges, repeats, compiled, defined, peer)


def embedding(edges: int, repeats: int) -> dict[str, Any]:
    """Harmonics, basis and envelope in one pass."""
    import torch

    from sciml_kernels import edge_embedding

    def joined(backend: str) -> Callable[..., Any]:
        return lambda vectors: torch.cat(edge_embedding(vectors, LMAX, BASIS, backend=backend), 1)

    width = WIDTH + BASIS + 1
    row = {"name": "edge embedding (and a copy)", "edges": edges, "bytes": count_bytes(edges, width)}
    return row | compare(edges, repeats, joined("cpu"), joined("reference"), joined("reference"))


def compare(
    edges: int, repeats: int, ours: Callable[..., Any], definition: Callable[..., Any], peer: Callable[..., Any]
) -> dict[str, Any]:
    """The error against the definition in fp64 on a tenth of the edges, and where it is small the times."""
    import torch

    torch.manual_seed(0)
    vectors = 0.4 * torch.nn.functional.normalize(torch.randn(edges, 3)) + 0.05 * torch.randn(edges, 3)
    part = vectors[::10]
    pairs = zip(derivatives(ours, part), derivatives(definition, part.double()), strict=True)
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    row: dict[str, Any] = {"error": error, "correct": error < TOLERANCE}
    if row["correct"]:
        row["ours_ms"] = times(ours, [vectors], repeats)
        row["peer_ms"] = times(peer, [vectors], max(3, repeats // 3))
        row["ratio"] = round(sum(row["peer_ms"].values()) / sum(row["ours_ms"].values()), 1)
    return row


def derivatives(function: Callable[..., Any], vectors: Any) -> list[Any]:
    """Value, first and second derivatives along fixed random directions (along v itself harmonics do not change)."""
    import torch

    generator = torch.Generator().manual_seed(1)
    leaf = vectors.clone().requires_grad_()
    value = function(leaf)
    g, u = (torch.randn(like.shape, generator=generator).to(like.dtype) for like in (value, leaf))
    (first,) = torch.autograd.grad(value, leaf, g.requires_grad_(), create_graph=True)
    return [tensor.detach() for tensor in (value, first, *torch.autograd.grad(first, [leaf, g], u))]


def count_bytes(edges: int, width: int) -> dict[str, int]:
    """What each pass must move: every input read once, every output written once."""
    numbers = (3 + width, 3 + width + 3, 3 + width + 3 + 3 + width)
    return {name: 4 * edges * count for name, count in zip(PASSES, numbers, strict=True)}


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each row."""
    lines = ["| what | edges | ours forward / backward / double, ms | limit, ms | peer, ms | ratio |", "|" + "---|" * 6]
    for row in rows:
        if not row["correct"]:
            lines.append(f"| {row['name']} | {row['edges']} | WRONG: error {row['error']:.1e} | | | |")
            continue
        cells = [" / ".join(str(value) for value in row[key].values()) for key in ("ours_ms", "limit_ms", "peer_ms")]
        lines.append(f"| {row['name']} | {row['edges']} | {' | '.join(cells)} | {row['ratio']}x |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
