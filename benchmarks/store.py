"""Random-order reads per second: our store beside LMDB with pickles and ASE's sqlite database, in the same run.

    python benchmarks/store.py [--records 20000] [--output benchmarks/results/store.json]

Structures are random crystals of 30 to 60 atoms (mean 45) with positions, forces, types, energy, cell. All three are
read in the same random order by one process with a warm page cache; every reader must return numpy arrays of
positions, forces and types. A correctness gate compares them first. Rates are the best of five passes, by the wall
clock and by the processor time of this process; on a busy machine only the second is a property of the reader.
"""

import argparse
import json
import pickle
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.store import Store, StoreWriter

Sample = dict[str, Any]


def structures(count: int, seed: int = 0) -> list[Sample]:
    """Return random periodic structures with labels."""
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        atoms = int(generator.integers(30, 61))
        length = (atoms * 18.0) ** (1 / 3)
        samples.append(
            {
                "id": f"random#{index}",
                "types": generator.choice([1, 6, 8, 14, 29], atoms).astype(np.uint8),
                "positions": (generator.random((atoms, 3)) * length).astype(np.float32),
                "forces": generator.normal(size=(atoms, 3)).astype(np.float32),
                "energy": float(generator.normal() * atoms),
                "cell": np.eye(3) * length,
                "pbc": np.ones(3, bool),
            }
        )
    return samples


def write_store(samples: Iterable[Sample], folder: Path) -> Path:
    """Write our store."""
    with StoreWriter(folder / "store", "materials", "random") as writer:
        for sample in samples:
            writer.add(sample)
    return folder / "store"


def write_lmdb(samples: list[Sample], folder: Path) -> Path:
    """Write LMDB: the pickle of a dictionary per record."""
    import lmdb

    path = folder / "samples.lmdb"
    with lmdb.open(str(path), map_size=1 << 33) as environment, environment.begin(write=True) as transaction:
        for index, sample in enumerate(samples):
            transaction.put(str(index).encode(), pickle.dumps(sample, protocol=5))
    return path


def write_ase(samples: list[Sample], folder: Path) -> Path:
    """Write ASE's sqlite database."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    path = folder / "samples.db"
    with connect(str(path)) as database:
        for sample in samples:
            atoms = Atoms(sample["types"], positions=sample["positions"], cell=sample["cell"], pbc=True)
            atoms.calc = SinglePointCalculator(atoms, energy=sample["energy"], forces=sample["forces"])
            database.write(atoms)
    return path


def lmdb_reader(path: Path) -> Callable[[int], Sample]:
    """Return a function that reads one record from LMDB."""
    import lmdb

    transaction = lmdb.open(str(path), readonly=True, lock=False, readahead=False).begin(buffers=True)
    return lambda index: pickle.loads(transaction.get(str(index).encode(), b""))


def ase_reader(path: Path) -> Callable[[int], Sample]:
    """Return a function that reads one row of ASE's database, without building Atoms (the faster way)."""
    from ase.db import connect

    database = connect(str(path))

    def read(index: int) -> Sample:
        row = database.get(id=index + 1)
        return {"types": row.numbers, "positions": row.positions, "forces": row.forces, "energy": row.energy}

    return read


def rate(read: Callable[[int], Any], order: list[int], passes: int = 5) -> tuple[float, float]:
    """Return the best records per second over ``passes`` of ``order``: by wall clock, by processor time."""
    wall = processor = float("inf")
    for _ in range(passes):
        start, start_processor = time.perf_counter(), time.process_time()
        for index in order:
            read(index)
        wall = min(wall, time.perf_counter() - start)
        processor = min(processor, time.process_time() - start_processor)
    return len(order) / wall, len(order) / processor


def by_clock(rates: dict[str, float]) -> dict[str, Any]:
    """Return the figures of one clock: records per second of every reader, and the store's over the others'."""
    return {
        "records_per_second": {name: round(rate) for name, rate in rates.items()},
        "store_over_ase_sqlite": round(rates["store"] / rates["ase_sqlite"], 1),
        "store_over_lmdb_pickle": round(rates["store"] / rates["lmdb_pickle"], 2),
    }


def check(readers: dict[str, Callable[[int], Sample]], samples: list[Sample]) -> None:
    """Raise RuntimeError unless every reader returns what was written."""
    for name, read in readers.items():
        for index in (0, len(samples) // 2, len(samples) - 1):
            found, written = read(index), samples[index]
            for key in ("types", "positions", "forces", "energy"):
                if not np.allclose(found[key], written[key], atol=1e-6):
                    raise RuntimeError(f"{name}: record {index}: {key} is not what was written")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, versions."""
    import os

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "pyarrow", "ase", "lmdb")},
    }


def size(path: Path) -> float:
    """Return the size in MB of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e6, 2)


def main() -> None:
    """Write the three, read them, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "store.json")
    arguments = parser.parse_args()
    samples = structures(arguments.records)
    order = np.random.default_rng(1).permutation(arguments.records).tolist()
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            "store": write_store(samples, Path(folder)),
            "lmdb_pickle": write_lmdb(samples, Path(folder)),
            "ase_sqlite": write_ase(samples, Path(folder)),
        }
        readers: dict[str, Callable[[int], Sample]] = {
            "store": Store(paths["store"]).__getitem__,
            "lmdb_pickle": lmdb_reader(paths["lmdb_pickle"]),
            "ase_sqlite": ase_reader(paths["ase_sqlite"]),
        }
        check(readers, samples)
        rates = {name: rate(read, order if name != "ase_sqlite" else order[:4000]) for name, read in readers.items()}
        sizes = {name: size(path) for name, path in paths.items()}
    result = {
        "records": arguments.records,
        "mean_atoms": float(np.mean([len(sample["types"]) for sample in samples])),
        "wall_clock": by_clock({name: wall for name, (wall, _) in rates.items()}),
        "processor_time": by_clock({name: processor for name, (_, processor) in rates.items()}),
        "megabytes": sizes,
        "machine": machine(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    for name, (wall, processor) in rates.items():
        print(f"{name:<12} records/s {wall:>9,.0f} (wall clock) {processor:>9,.0f} (processor) {sizes[name]:>6.1f} MB")
    for clock in ("wall_clock", "processor_time"):
        print(f"store / ASE sqlite by {clock.replace('_', ' ')}: {result[clock]['store_over_ase_sqlite']}x")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
