"""Plots of a certificate: energy over time, dimers through the cutoff, errors against boosts, soft limits."""

from typing import Any

import numpy as np
from ase.data import chemical_symbols

from sciml.evaluate.html import png
from sciml.evaluate.plots import COLOURS, INK, figure

FLOOR = 1e-18  # of errors on a logarithmic axis
Lines = list[dict[str, Any]]


def energy_over_time(lines: Lines) -> bytes:
    """Total energy of every NVE run, from its first value, with the drift in the title."""
    drawing, axes = figure(5.2 * len(lines), 3.2, len(lines))
    for axis, line, colour in zip(axes, lines, COLOURS * len(lines), strict=False):
        axis.plot(line["time"], line["energy"], color=colour, linewidth=0.7, alpha=0.6, label="total energy")
        axis.plot(line["time"], line["shadow"], color=INK, linewidth=1, label="energy that the integrator conserves")
        axis.axhline(0.0, color=INK, linewidth=0.5)
        axis.set_title(f"{line['name']}: drift {line['drift']:+.2g} meV/atom/ps", fontsize=9)
        axis.set_xlabel("time / ps", fontsize=8)
        axis.set_ylabel("energy / meV per atom", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
        # A line that only rounding moves is drawn flat.
        energy = np.abs(line["energy"])
        reach = max(0.5, 1.1 * float(energy[np.isfinite(energy)].max(initial=0.0)))
        axis.set_ylim(-reach, reach)
    return png(drawing)


def dimers(lines: Lines) -> bytes:
    """Energy and force of dimers; the cutoff is a dashed line, its neighbourhood is magnified in the right panels."""
    quantities = [name for name in ("energy", "force") if any(name in line for line in lines)]
    drawing, axes = figure(10.4, 3.2 * len(quantities), 2, len(quantities))
    labels = {"energy": "energy / eV", "force": "force on the second atom / eV/Å"}
    for row, quantity in zip(axes if len(quantities) > 1 else [axes], quantities, strict=True):
        for line, colour in zip(lines, COLOURS * len(lines), strict=False):
            if quantity in line:
                name = "-".join(chemical_symbols[z] for z in line["elements"])
                distance, values = np.array(line["distance"]), np.array(line[quantity])
                near = distance > 0.85 * line["cutoff"]
                row[0].plot(distance, values, color=colour, linewidth=1.1, label=f"{name}, {line['name']}")
                row[1].plot(distance[near], values[near], color=colour, linewidth=1.1)
        for axis in row:
            for cutoff in {line["cutoff"] for line in lines}:
                axis.axvline(cutoff, color=INK, linewidth=0.7, linestyle="--")
            axis.set_xlabel("distance / Å", fontsize=8)
        row[0].set_ylabel(labels[quantity], fontsize=8)
        row[1].set_title("around the cutoff (dashed)", fontsize=9)
        row[0].legend(fontsize=7, frameon=False)
    return png(drawing)


def boosts(lines: Lines) -> bytes:
    """Errors against gamma: the geometry left, outputs in fp64 and fp32 right; dashed where the jet is light."""
    drawing, axes = figure(10.4, 3.6, 2)
    outputs = sorted({line["name"].partition(",")[0] for line in lines})
    for line in lines:
        name, precision = (part.strip() for part in line["name"].split(",")[:2])
        geometry = name in ("frame", "scalars", "edge_scalars")
        colour = COLOURS[outputs.index(name) % len(COLOURS)]
        axes[0 if geometry else 1].plot(
            line["gamma"],
            np.maximum(line["error"], FLOOR),
            marker="o" if precision == "fp64" else "s",
            markersize=3,
            linewidth=1,
            linestyle="--" if line["name"].endswith("light jet") else "-",
            color=colour if geometry or precision == "fp64" else COLOURS[1],
            label=line["name"].replace("edge_scalars", "pair features").replace("scalars", "features"),
        )
    for axis, title in zip(axes, ("geometry", "outputs"), strict=True):
        axis.set_yscale("log")
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        axis.set_title(f"{title}: error under a random boost", fontsize=9)
        axis.set_xlabel("Lorentz factor", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
    axes[1].axhline(1e-4, color=INK, linewidth=0.7, linestyle=":")
    return png(drawing)


def limits(lines: Lines) -> bytes:
    """Change of outputs as a particle becomes soft and as a splitting becomes collinear."""
    laws = sorted({line["name"].partition(":")[0] for line in lines}, reverse=True)
    drawing, axes = figure(5.2 * len(laws), 3.2, len(laws))
    for axis, law in zip(axes, laws, strict=True):
        for line, colour in zip([line for line in lines if line["name"].startswith(law)], COLOURS, strict=False):
            values = np.maximum(line["change"], FLOOR)
            axis.plot(
                line["parameter"], values, marker="o", markersize=3, color=colour, label=line["name"].split(": ")[1]
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.invert_xaxis()
        axis.set_title(f"{law}: relative change of an output", fontsize=9)
        axis.set_xlabel(
            "energy of the added particle / jet" if "infra" in law else "angle of the splitting", fontsize=8
        )
        axis.legend(fontsize=7, frameon=False)
    return png(drawing)
