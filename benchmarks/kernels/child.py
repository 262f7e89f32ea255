"""One provider on one problem, in a process of its own: checked first, timed only where it is right.

    python child.py PAYLOAD

The payload is a file of torch.save, see `run.py`; the answer is the last line of the output, as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from measure import TOLERANCE, Work, bandwidth, error, flops
from problems import Instance
from providers import prepare


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    """The error at the gate and, where that is small, times and memory at the size asked for.

    Args:
        payload: "provider", "device", "repeats"; the described problem as "tiny", "gate" and "plain", in rising size;
            "expected" (results at the gate, in fp64), "hardware" (whether to measure its speed).
    """
    provider, device = payload["provider"], payload["device"]

    def work(size: str) -> Work:
        instance = Instance(payload[size], device, everywhere=size == "gate")
        return Work(prepare(provider, instance), instance)

    work("tiny").results()  # loads libraries, with little memory of its own
    large = work("plain")
    memory = large.memory()
    deviation = error(work("gate").results(), payload["expected"])
    found: dict[str, Any] = {"error": deviation, "correct": deviation < TOLERANCE}
    if found["correct"]:
        found |= {"memory": memory, "ms": large.times(payload["repeats"])}
        if payload["hardware"]:
            found |= {"copy_GBps": round(bandwidth(device) / 1e9, 1), "product_GFLOPps": round(flops(device) / 1e9, 1)}
    return found


def main() -> int:
    """Read the payload, print the answer."""
    warnings.simplefilter("ignore")
    payload = torch.load(sys.argv[1])
    torch.set_num_threads(payload["threads"])
    print(json.dumps(answer(payload)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
