"""Metrics as text for a terminal."""

import math
from typing import Any

_OF_JETS = ("true_momenta", "true_mass", "true_pt")
MOST_KINDS = 12  # rows of elements, and of configuration types
HEADER = ("store", "target", "error", "baseline", "ratio", "unit", "labels")


def text_table(stores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Rows per store and target: errors of numbers, AUC of taggers, recovery of residue types, and baselines."""
    rows: list[tuple[str, ...]] = [HEADER]
    for store, metrics in stores.items():
        for target, values in metrics.items():
            rows += [(store, *row) for row in _rows(target, values)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _rows(target: str, values: dict[str, Any]) -> list[tuple[str, ...]]:
    if target == "label":
        return _label_rows(values)
    if target == "residue_types":
        return _residue_rows(values)
    if "baseline_accuracy" in values:
        beside = f"{values['baseline_accuracy']:.3f} (most frequent class)"
        row = (f"{target} accuracy", f"{values['accuracy']:.3f}", beside, "", "", f"{values['count']:,}")
        return [row, *_kind_rows(target, values)]
    return [
        *_value_rows(target, values),
        *_kind_rows(target, values),
        *(_momenta_rows(values) if target == "true_momenta" else []),
    ]


def _label_rows(values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Accuracy and calibration of jets, and of each class against the background its AUC and rejections."""
    count = f"{values['count']:,}"
    rows: list[tuple[str, ...]] = [("accuracy", _with_error(values, "accuracy", ".3f"), "", "", "", count)]
    if len(values["signals"]) > 1:
        rows.append(("mean AUC of pairs", f"{values['mean_auc']:.3f}", "", "", "", count))
    rows.append(("calibration error", f"{values['calibration_error']:.3f}", "", "", "", count))
    for name, pair in values["signals"].items():
        window = pair.get("mass_window_auc")
        baseline = f"{window:.3f} (mass window)" if window is not None else ""
        rows.append((f"AUC {name} / {values['background']}", _with_error(pair, "auc", ".3f"), baseline, "", "", count))
        for key in (key for key in pair if key.startswith("rejection") and not key.endswith("error")):
            at = key.removeprefix("rejection_")
            rows.append((f"  rejection at {at}", _with_error(pair, key, ".1f"), "", "", "", ""))
            divergence = pair[f"mass_divergence_{at}"]
            if math.isfinite(divergence):
                rows.append((f"  mass divergence at {at}", f"{divergence:.3f}", "", "", "bits", ""))
    return rows


def _residue_rows(values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Recovery, cross-entropy and perplexity of residue types beside those of the composition, with the interval of the
    difference.
    """
    error, baseline = values["cross_entropy"], values["baseline_cross_entropy"]
    low, high = values["difference_low"], values["difference_high"]
    count = f"{values['count']:,}"
    recovered = f"{values['baseline_recovery']:.1%} (most frequent type)"
    perplexity = f"{math.exp(baseline):.2f} (composition)"
    interval = f"difference {values['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return [
        ("residue type recovery", f"{values['recovery']:.1%}", recovered, "", "", count),
        (
            "residue type cross-entropy",
            f"{error:.3f}",
            f"{baseline:.3f} (composition)",
            f"{error / baseline:.2f}",
            f"nats, {interval}",
            count,
        ),
        ("residue type perplexity", f"{values['perplexity']:.2f}", perplexity, "", "", count),
    ]


def _value_rows(target: str, values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Errors of a number or vector beside its baseline's, correlations, response and resolution where measured."""
    count = f"{values['count']:,}"
    what = {"energy": "composition fit", "energy_per_atom": "composition fit"} | dict.fromkeys(_OF_JETS, "as measured")
    rows: list[tuple[str, ...]] = []
    for name in ("mae", "rmse"):
        error, baseline = values[name], values[f"baseline_{name}"]
        ratio = f"{error / baseline:.2f}" if baseline else ""
        beside = f"{baseline:.4g} ({what.get(target, 'zero')})"
        rows.append((f"{target} {name.upper()}", f"{error:.4g}", beside, ratio, values["unit"], count))
    rows += [
        (f"{target} {name.capitalize()}", f"{values[name]:.3f}", "", "", "", count)
        for name in ("pearson", "spearman")
        if name in values
    ]
    return rows + [
        (f"{target} {name}", f"{values[name]:.3f}", f"{values[f'baseline_{name}']:.3f} (as measured)", "", "", count)
        for name in ("response", "resolution")
        if name in values
    ]


def _with_error(pair: dict[str, float], key: str, digits: str) -> str:
    """A value with its bootstrap error, in words where so few jets are left that either is not finite."""
    if not math.isfinite(pair[key]):
        return "no background jet is left"
    error = pair[f"{key}_error"]
    return f"{pair[key]:{digits}} ± " + (f"{error:{digits}}" if math.isfinite(error) else "? (too few jets)")


def _kind_rows(target: str, values: dict[str, Any]) -> list[tuple[str, ...]]:
    """MAE and RMSE, or accuracies, of elements and of configuration types, those with the most labels."""
    rows: list[tuple[str, ...]] = []
    for key, table in values.items():
        if key.startswith("by_"):
            shown = list(table.items())[:MOST_KINDS]
            rows += [_kind_row(target, kind, found, values["unit"]) for kind, found in shown]
            if len(table) > len(shown):
                rows.append((f"  and {len(table) - len(shown)} more in metrics.json", "", "", "", "", ""))
    return rows


def _kind_row(target: str, kind: str, found: dict[str, Any], unit: str) -> tuple[str, ...]:
    """A row of one element or configuration type."""
    count = f"{found['count']:,}"
    if "accuracy" in found:
        return f"  {target} accuracy of {kind}", f"{found['accuracy']:.3f}", "", "", "", count
    return f"  {target} MAE of {kind}", f"{found['mae']:.4g}", f"RMSE {found['rmse']:.4g}", "", unit, count


def _momenta_rows(values: dict[str, Any]) -> list[tuple[str, ...]]:
    """Relative errors of the components of four-momenta, and how well their sum is the total."""
    rows: list[tuple[str, ...]] = []
    for name, error in values["relative"].items():
        baseline = values["baseline_relative"][name]
        rows.append((f"relative error of {name}", f"{error:.3g}", f"{baseline:.3g}", f"{error / baseline:.2f}", "", ""))
    violations = f"{values['conservation']:.1e}", f"{values['baseline_conservation']:.1e}"
    return [*rows, ("|sum - total| / E of a jet", *violations, "", "", "")]
