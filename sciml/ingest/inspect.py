"""``sciml inspect``: a summary of data that a person reads, and histograms as one picture; or what a model costs."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciml.data.records import targets
from sciml.data.statistics import composition, energies_less_references
from sciml.data.store import Store
from sciml.ingest.ingest import open_data
from sciml.units import GPA

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RESIDUES = "ACDEFGHIKLMNPQRSTVWYX"
_INK, _FILL, _GRID = "#1f2933", "#2f6f9f", "#d9dee3"
_MAX_BARS = 24


def run(config: Any) -> int:
    """Print what a model costs, or the summary of a store, and draw its histograms into ``config.output``."""
    if config.model is not None:
        from sciml.evaluate.model_summary import summary_of_configuration

        print(summary_of_configuration(config.model.model_dump(), config.source))
        return 0
    if is_package(config.source):
        from sciml.evaluate.model_summary import summary_of_package

        print(summary_of_package(config.source))
        return 0
    store = open_data(config.source)
    print(summary(store))
    name = Path(config.source).name.split(".")[0] or "store"
    folder = Path(config.output) if config.output else Path("inspect") / name
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nhistograms: {picture(store, folder / 'histograms.png', title=name)}")
    return 0


def is_package(path: str) -> bool:
    """Return whether ``path`` is a package, or a run folder that holds one."""
    return any((Path(path) / name / "config.json").is_file() for name in ("", "package"))


def summary(store: Store) -> str:
    """Return a text: counts, elements or classes, targets with coverage and distribution, groups, quarantine."""
    manifest = store.manifest
    counts = manifest["counts"]
    noun = "particles" if store.base == "hep" else "atoms"
    sizes = store.sizes
    rows = [
        ("domain", f"{store.domain}, level of theory {store.dataset!r}"),
        ("records", f"{counts['records']:,} with {counts['fine_nodes']:,} {noun}"),
        (f"{noun} per record", f"{sizes.min():,} to {sizes.max():,}, median {np.median(sizes):,.0f}"),
        ("groups", _groups(store)),
        *_content(store),
        ("licence", manifest.get("licence") or "not stated"),
        ("source", manifest.get("source") or "not stated"),
        ("quarantined", _quarantine(store)),
        ("data hash", store.data_hash[:16]),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows if value]
    return "\n".join([str(store.path), *lines, "", *_target_table(store)])


def _groups(store: Store) -> str:
    number = len(set(store.groups))
    return f"{number:,}" + (" (one per record)" if number == len(store) else "")


def _quarantine(store: Store) -> str:
    number = store.manifest["counts"]["quarantined"]
    return f"{number:,}, see {store.path / 'quarantine.jsonl'}" if number else "0"


def _content(store: Store) -> list[tuple[str, str]]:
    """Rows that depend on the domain."""
    if store.base == "hep":
        names, numbers = store.manifest["classes"], store.manifest["statistics"]["label_counts"]
        common = sorted(zip(names, numbers), key=lambda pair: -pair[1])
        shown = ", ".join(f"{name} {number:,}" for name, number in common[:8] if number)
        filled = sum(number > 0 for number in numbers)
        regulated = store.manifest["counts"].get("regulated_constituents", 0)
        return [
            ("classes", f"{filled} with records, of {len(names)}: {shown}{', ...' if filled > 8 else ''}"),
            ("regulated", f"{regulated:,} constituents had a negative mass squared"),
        ]
    rows = [("elements", _elements(store)), ("neighbours", _neighbors(store))]
    if store.base == "materials":
        kinds = Counter("".join("TF"[not flag] for flag in flags) for flags in _values(store, "pbc").tolist())
        rows.append(("periodic", ", ".join(f"{kind}: {number:,}" for kind, number in sorted(kinds.items()))))
        config_types = Counter(name for name in store.texts("config_type") if name)
        rows.append(("config types", ", ".join(f"{name} {number:,}" for name, number in config_types.most_common(8))))
    else:
        rows.append(("residues", f"{sum(store.manifest['statistics']['residue_counts']):,}"))
    return rows


def _elements(store: Store) -> str:
    from ase.data import chemical_symbols

    counts = composition(store, np.ones(len(store), bool)).sum(axis=0)
    return ", ".join(f"{chemical_symbols[number]} {counts[number]:,}" for number in np.flatnonzero(counts))


def _neighbors(store: Store) -> str:
    mean = store.manifest["statistics"]["mean_neighbors"]
    return f"{mean:.1f} per atom within {store.manifest['reference_radius']:g} Å"


def _target_table(store: Store) -> list[str]:
    """One line per target: coverage, then mean, deviation and range of its values."""
    lines = [f"{'target':<28}{'records':>10}{'mean':>14}{'std':>14}{'min':>14}{'max':>14}"]
    units = store.manifest["units"]
    classes = {"label", "residue_types", *(target.name for target in store.targets if target.classes)}
    for name in (*targets(store.domain), *(target.name for target in store.targets)):
        present = int(store.has(name).sum())
        label = f"{name} [{units[name]}]" if name in units else name
        if not present:
            lines.append(f"{label:<28}{'none':>10}")
            continue
        if name in classes:
            lines.append(f"{label:<28}{present:>10,}{'(classes)':>14}")
            continue
        shown = [(label, _values(store, name).astype(np.float64))]
        if name == "energy":
            shown.append((" per atom, less references", _interaction(store)))
        for text, values in shown:
            numbers = (values.mean(), values.std(), values.min(), values.max())
            lines.append(f"{text:<28}{present:>10,}" + "".join(f"{number:>14.5g}" for number in numbers))
    return lines


def _values(store: Store, name: str) -> np.ndarray:
    """Every value of a field, over the records that have it, along the first axis."""
    parts = []
    for _, columns, length in store.shards():
        if name in columns:
            column = columns[name]
            keep = np.ones(length, bool) if column.present is None else column.present
            parts.append(column.values[keep] if column.offsets is None else column.values)
    return np.concatenate(parts) if parts else np.zeros(0)


def _interaction(store: Store) -> np.ndarray:
    """Energy per atom after the reference energies, eV."""
    return energies_less_references(store, store.manifest["statistics"]["reference_energies"])


def picture(store: Store, path: Path, title: str) -> Path:
    """Draw the histograms of a store as one PNG and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(store)
    columns = 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9.6, 0.6 + 3.1 * rows), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: {len(store):,} {store.domain} records, {store.dataset}", fontsize=12, color=_INK)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (kind, label, data) in zip(axes, panels):
        (_bars if kind == "bars" else _histogram)(axis, data)
        _style(axis, label, kind)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.savefig(path)
    return path


def _panels(store: Store) -> list[tuple[str, str, Any]]:
    """(kind, label of the horizontal axis, data) of every histogram that the store has data for."""
    if store.base == "hep":
        momenta = _values(store, "jet_momentum").astype(np.float64)
        energy, transverse = momenta[:, 0], np.hypot(momenta[:, 1], momenta[:, 2])
        mass = np.sqrt(np.maximum(energy**2 - (momenta[:, 1:] ** 2).sum(axis=1), 0))
        labels = Counter(_values(store, "label").tolist())
        names = store.manifest["classes"] or [str(index) for index in range(max(labels, default=0) + 1)]
        panels = [
            ("histogram", "constituents per jet", store.sizes),
            ("histogram", "jet transverse momentum [GeV]", transverse),
            ("histogram", "jet mass [GeV]", mass),
        ]
        bars = [(names[index], number) for index, number in sorted(labels.items())]
        return [*panels, ("bars", _bars_label("class", len(bars)), bars)] if bars else panels
    panels = [("histogram", "atoms per record", store.sizes)]
    if store.base == "biology":
        residues = np.bincount(_values(store, "residue_types"), minlength=len(_RESIDUES))
        panels.append(("bars", "residue type", list(zip(_RESIDUES, residues.tolist()))))
    else:
        panels.append(("bars", "element", _element_bars(store)))
    if store.has("energy").any():
        panels.append(("histogram", "energy per atom, less references [eV]", _interaction(store)))
    if store.has("forces").any():
        panels.append(("log", "force component [eV/Å]", _values(store, "forces").ravel()))
    if store.base == "materials" and store.has("stress").any():
        pressure = -np.trace(_values(store, "stress"), axis1=1, axis2=2) / 3 / GPA
        panels.append(("histogram", "pressure [GPa]", pressure))
    panels.append(("histogram", "neighbours per atom within 6 Å", store.pairs / store.sizes))
    return panels


def _element_bars(store: Store) -> list[tuple[str, int]]:
    from ase.data import chemical_symbols

    counts = composition(store, np.ones(len(store), bool)).sum(axis=0)
    return [(chemical_symbols[number], int(counts[number])) for number in np.flatnonzero(counts)]


def _bars_label(noun: str, bars: int) -> str:
    return noun if bars <= _MAX_BARS else f"{noun} (the {_MAX_BARS} most frequent of {bars})"


def _bars(axis: "Axes", data: list[tuple[str, int]]) -> None:
    if len(data) > _MAX_BARS:
        data = sorted(data, key=lambda pair: -pair[1])[:_MAX_BARS]
    axis.bar(range(len(data)), [number for _, number in data], color=_FILL, width=min(0.8, 0.12 * len(data) + 0.1))
    crowded = sum(len(name) for name, _ in data) > 34
    axis.set_xticks(range(len(data)), [name for name, _ in data], rotation=60 if crowded else 0, fontsize=8)
    if len(data) < 4:
        axis.set_xlim(-1.2, len(data) + 0.2)


def _histogram(axis: "Axes", values: np.ndarray) -> None:
    """Whole numbers get bins of whole width; where outliers would flatten the rest, they fall into the outer bins."""
    low, high = values.min(), values.max()
    inner = np.percentile(values, [0.1, 99.9])
    if high - low > 4 * np.ptp(inner) > 0:
        low, high = inner
    if np.issubdtype(values.dtype, np.integer):
        step = max(1, int(np.ceil((high - low + 1) / 40)))
        start = int(low)
        bins = np.arange(start, int(high) + step + 1, step) - 0.5
        if len(bins) < 8:  # one size only: a bar in the middle rather than a wall
            bins = np.arange(start - 4, start + 6) - 0.5
    else:
        spread = high - low if high > low else max(abs(high), 1.0) * 0.1
        bins = np.linspace(low - 0.02 * spread, high + 0.02 * spread, 41)
    axis.hist(np.clip(values, bins[0], bins[-1]), bins=bins.tolist(), color=_FILL)


def _style(axis: "Axes", label: str, kind: str) -> None:
    if kind == "log":
        axis.set_yscale("log")
    axis.set_xlabel(label, fontsize=9, color=_INK)
    axis.set_ylabel("count", fontsize=9, color=_INK)
    axis.tick_params(labelsize=8, colors=_INK, length=3)
    axis.grid(axis="y", color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(_GRID)
