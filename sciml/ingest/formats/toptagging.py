"""The top-tagging reference set: pandas tables in HDF5 (Kasieczka et al., 2019; https://zenodo.org/records/2603256).

One row per jet: ``E_0, PX_0, PY_0, PZ_0`` to ``..._199`` in GeV, zero where the jet has fewer constituents, the top's
``truth*``, ``ttv`` and ``is_signal_new`` (1 top, 0 QCD). Kinds and charges of the constituents are not given. pandas
reads the names of columns as pickles: open files that you trust alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, identifier, refuse_unused
from sciml.ingest.formats.spice import is_hdf5

DOMAIN = "hep"
EXTENSIONS = (".h5", ".hdf5")
CLASSES = ["qcd", "top"]
_TABLE = "table"
_LABEL = "is_signal_new"
_OTHER = 6  # the kind of a particle that is not told
_BATCH = 10_000


def sniff(path: Path) -> bool:
    """Return whether the file is HDF5 with a pandas table."""
    if not path.name.lower().endswith(EXTENSIONS) or not is_hdf5(path):
        return False
    with open(path, "rb") as file:
        return b"pandas_type" in file.read(1 << 20)


def metadata(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the names of the classes."""
    return {"classes": CLASSES}


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per jet. Raises UserError where pandas or tables is missing, or a column is not there."""
    refuse_unused(path, options, ())
    try:
        import pandas
        import tables  # noqa: F401 (pandas needs it)
    except ImportError:
        raise UserError(f"{path}: reading pandas tables needs pandas and tables; install sciml[sets].") from None
    try:
        with pandas.HDFStore(str(path), "r") as store:
            for start in range(0, store.get_storer(_TABLE).nrows, _BATCH):
                frame = store.select(_TABLE, start=start, stop=start + _BATCH)
                yield from _jets(path, frame, start)
    except (KeyError, OSError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: the table {_TABLE!r} cannot be read ({error}); is the file whole?") from None


def _jets(path: Path, frame: Any, start: int) -> Iterator[Record | Rejected]:
    names = list(frame.columns)
    count = sum(name.startswith("E_") for name in names)
    columns = [f"{part}_{index}" for index in range(count) for part in ("E", "PX", "PY", "PZ")]
    for name in (*(columns or ["E_0"]), _LABEL):
        if name not in names:
            raise UserError(f"{path}: the column {name} is missing; the columns found are {', '.join(names[:12])}.")
    momenta = frame[columns].to_numpy(np.float64).reshape(len(frame), count, 4)
    labels = frame[_LABEL].to_numpy()
    for row, (jet, label) in enumerate(zip(momenta, labels, strict=True)):
        jet = jet[jet[:, 0] != 0]
        name = identifier(path, start + row)
        yield {
            "id": name,
            "group": name,
            "types": np.full(len(jet), _OTHER, np.uint8),
            "momenta": jet,
            "particle_charge": np.zeros(len(jet), np.int8),
            "label": int(label),
        }
