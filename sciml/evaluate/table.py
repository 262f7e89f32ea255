"""Metrics as text for a terminal."""

from typing import Any

HEADER = ("store", "target", "error", "baseline", "ratio", "unit", "labels")


def text_table(stores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One row per store and target: MAE of numbers, AUC of taggers, cross-entropy of residue types, and baselines."""
    rows: list[tuple[str, ...]] = [HEADER]
    for store, metrics in stores.items():
        for target, values in metrics.items():
            rows += [(store, *row) for row in _rows(target, values)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _rows(target: str, values: dict[str, Any]) -> list[tuple[str, ...]]:
    count = f"{values['count']:,}"
    if target == "label":
        rows: list[tuple[str, ...]] = [("accuracy", f"{values['accuracy']:.3f}", "", "", "", count)]
        for name, pair in values["signals"].items():
            window = pair.get("mass_window_auc")
            baseline = f"{window:.3f} (mass window)" if window is not None else ""
            rows.append((f"AUC {name} / {values['background']}", f"{pair['auc']:.3f}", baseline, "", "", count))
        return rows
    if target == "residue_types":
        error, baseline = values["cross_entropy"], values["baseline_cross_entropy"]
        low, high = values["difference_low"], values["difference_high"]
        interval = f"difference {values['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        return [
            (
                "residue type cross-entropy",
                f"{error:.3f}",
                f"{baseline:.3f} (composition)",
                f"{error / baseline:.2f}",
                f"nats, {interval}",
                count,
            )
        ]
    mae, baseline = values["mae"], values["baseline_mae"]
    what = {"energy": "composition fit", "energy_per_atom": "composition fit", "true_momenta": "as measured"}
    ratio = f"{mae / baseline:.2f}" if baseline else ""
    beside = f"{baseline:.4g} ({what.get(target, 'zero')})"
    return [
        (f"{target} MAE", f"{mae:.4g}", beside, ratio, values["unit"], count),
        *(_momenta_rows(values) if target == "true_momenta" else []),
    ]


def _momenta_rows(values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Relative errors of the components of four-momenta, and how well their sum is the total."""
    rows: list[tuple[str, ...]] = []
    for name, error in values["relative"].items():
        baseline = values["baseline_relative"][name]
        rows.append((f"relative error of {name}", f"{error:.3g}", f"{baseline:.3g}", f"{error / baseline:.2f}", "", ""))
    violations = f"{values['conservation']:.1e}", f"{values['baseline_conservation']:.1e}"
    return [*rows, ("|sum - total| / E of a jet", *violations, "", "", "")]
