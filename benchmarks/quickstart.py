"""Run the quickstart recipe as a user does and record its time and its errors: python benchmarks/quickstart.py

Writes results/quickstart.json. Further words go to `sciml train`.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))  # holds the helpers of all benchmarks
from workers import machine, write_result

OUTPUT = Path(__file__).parent / "results" / "quickstart.json"


def checks(targets: dict[str, Any], seconds: float) -> dict[str, dict[str, Any]]:
    """What the quickstart promises on held-out samples: {row: value, bound, holds}."""
    top = targets["label"]["signals"]["top"]
    rows = {
        "whole command, s": (seconds, 300.0, seconds < 300.0),
        "force MAE / zero forces": _ratio(targets["forces"], 0.4),
        "energy MAE / composition fit": _ratio(targets["energy"], 0.3),
        "AUC top / qcd above the mass window": _at_least(top["auc"] - top["mass_window_auc"], 0.02),
        "residue cross-entropy - composition, upper end of the 95 % interval": _below(
            targets["residue_types"]["difference_high"], 0.0
        ),
    }
    return {name: dict(zip(("value", "bound", "holds"), row, strict=True)) for name, row in rows.items()}


def _ratio(values: dict[str, Any], bound: float) -> tuple[float, float, bool]:
    ratio = values["mae"] / values["baseline_mae"]
    return ratio, bound, ratio <= bound


def _at_least(value: float, bound: float) -> tuple[float, float, bool]:
    return value, bound, value >= bound


def _below(value: float, bound: float) -> tuple[float, float, bool]:
    return value, bound, value < bound


def main() -> int:
    """Run, measure, write; 1 where a row does not hold."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        command = [str(Path(sys.executable).with_name("sciml")), "train", "experiment=quickstart", f"run_dir={run}"]
        start = time.perf_counter()
        subprocess.run([*command, *sys.argv[1:]], check=True)
        seconds = time.perf_counter() - start
        metrics = json.loads((run / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
        steps = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]
    rows = checks(metrics["targets"], seconds)
    write_result(OUTPUT, {"machine": machine(), "steps": steps, "checks": rows, **metrics})
    for row, values in rows.items():
        print(f"{'holds' if values['holds'] else 'FAILS'}  {row}: {values['value']:.3f} (bound {values['bound']})")
    return 0 if all(values["holds"] for values in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
