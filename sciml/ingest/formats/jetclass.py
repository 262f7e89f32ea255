"""Jets as parquet tables with flat branches, as JetClass and JetClass-II write them (https://zenodo.org/record/6619768).

Per jet: lists ``part_px``, ``part_py``, ``part_pz``, ``part_energy`` (GeV), ``part_charge`` and flags ``part_is*``; the
class is either one-hot in ``label_*`` or an integer in ``jet_label`` or ``label``. Targets are any other branches: of
the level graph a number, class or list a jet, of the level fine a list of one for every particle.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.records import Record
from sciml.data.targets import Target
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, identifier, present, refuse_unused
from sciml.ingest.formats.labels import read_label

DOMAIN = "hep"
TAKES_TARGETS = True
EXTENSIONS = (".parquet", ".pq")
_MOMENTA = ("part_energy", "part_px", "part_py", "part_pz")
# Order of the particle kinds 1 to 5 of the schema; 6 is any other particle.
_FLAGS = (
    "part_isChargedHadron",
    "part_isNeutralHadron",
    "part_isPhoton",
    "part_isElectron",
    "part_isMuon",
)
_JET = ("jet_pt", "jet_eta", "jet_phi", "jet_energy")
_TRUE = ("genjet_pt", "genjet_eta", "genjet_energy")  # of the jet of all stable particles, before the detector
_CLASS = ("jet_label", "label")
_EVENT = ("event_number", "event", "event_id")
_BATCH = 2048


def sniff(path: Path) -> bool:
    """Return whether the file is named as parquet."""
    return path.name.lower().endswith(EXTENSIONS)


def metadata(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the names of the classes: those of the one-hot branches, else the numbers up to the largest label."""
    import pyarrow.compute as pc

    names: list[str] | None = None
    largest = -1
    for path in paths:
        file = _open(path)
        here = one_hot_branches(file.schema_arrow.names)
        names = same_classes(path, here, paths[0], names)
        column = _first(file.schema_arrow.names, _CLASS)
        if not here and column:
            maximum = pc.max(file.read(columns=[column]).column(column)).as_py()
            largest = max(largest, -1 if maximum is None else int(maximum))
    if names:
        return {"classes": [name.removeprefix("label_") for name in names]}
    return {"classes": [str(index) for index in range(largest + 1)]}


def same_classes(path: Path, found: list[str], first: Path, known: list[str] | None) -> list[str]:
    """Return the one-hot branches ``found`` in a file; raises UserError where they are not ``known`` of the first."""
    if known is not None and found != known:
        raise UserError(f"{path}: its classes {', '.join(found) or 'none'} are not those of {first}; ingest apart.")
    return found


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per jet, constituents in the file's order. Units are GeV.

    Raises UserError when the file is truncated, a branch is missing, or a key or unit of labels was given.
    """
    refuse_unused(path, options, ("targets",))
    file = _open(path)
    yield from read_branches(path, file.schema_arrow.names, partial(file.iter_batches, _BATCH), options)


def read_branches(
    path: Path, names: Sequence[str], batches: Callable[..., Iterable[Any]], options: Options
) -> Iterator[Record | Rejected]:
    """Yield one record per jet, with the targets of ``options``, of a file with the branches ``names``.

    ``batches(columns=...)`` gives Arrow record batches of some of them. Raises UserError when a branch is missing or
    cannot be read.
    """
    import pyarrow as pa

    for name in (*_MOMENTA, "part_charge"):
        if name not in names:
            raise UserError(f"{path}: the branch {name} is missing; the branches found are {', '.join(names[:12])}.")
    for target in options.targets:
        if target.source not in names:
            options.lacking(
                f"{path}: no branch {target.source!r} of the target {target.name}, the branches found are "
                f"{', '.join(names)}; name it with heads.{target.name}.column=BRANCH, or targets when ingesting."
            )
    targets = [target for target in options.targets if target.source in names]
    one_hot, label, event = one_hot_branches(names), _first(names, _CLASS), _first(names, _EVENT)
    jet = [name for name in dict.fromkeys((*_JET, *_TRUE)) if name in names]
    columns = [*_MOMENTA, "part_charge", *(flag for flag in _FLAGS if flag in names), *one_hot, *jet]
    columns += [name for name in (label, event) if name]
    columns = list(dict.fromkeys([*columns, *(target.source for target in targets)]))
    start = 0
    try:
        for batch in batches(columns=columns):
            yield from _jets(path, batch, start, one_hot, label, event, targets)
            start += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: record {path.name}#{start}: cannot be read ({error}); is the file whole?") from None


def _jets(
    path: Path,
    batch: Any,
    start: int,
    one_hot: list[str],
    label: str | None,
    event: str | None,
    targets: Sequence[Target],
) -> Iterator[Record | Rejected]:
    offsets, momenta, charges, types = _constituents(path, batch)
    labels = _labels(batch, one_hot, label)
    events = batch.column(event).to_pylist() if event else None
    jets, true = _jet_momenta(batch), _true_kinematics(batch)
    found = {target: batch.column(target.source).to_pylist() for target in targets}
    for row in range(batch.num_rows):
        part = slice(offsets[row], offsets[row + 1])
        name = identifier(path, start + row)
        keep = momenta[part, 0] != 0  # padding
        if labels is not None and labels[row] < 0:
            yield Rejected(name, f"{one_hot[0] if one_hot else label}: no class, or more than one, is set")
            continue
        try:
            own = {target.name: _label(target, values[row], keep) for target, values in found.items()}
        except ValueError as error:
            yield Rejected(name, str(error))
            continue
        yield present(
            {
                "id": name,
                "group": name if events is None else f"{path.name}:{events[row]}",
                "types": types[part][keep],
                "momenta": momenta[part][keep],
                "particle_charge": charges[part][keep],
                "label": None if labels is None else labels[row],
                "jet_momentum": None if jets is None else jets[row],
                **{key: values[row] for key, values in true.items() if values[row] > 0},
                **own,
            }
        )


def _label(target: Target, value: Any, keep: np.ndarray) -> np.ndarray | None:
    """The label of a jet, or of those of its particles that are no padding (``keep``); None where it has none."""
    if value is None or target.level == "graph":
        return None if value is None else read_label(target, value)
    if not isinstance(value, list) or len(value) != len(keep):
        raise ValueError(f"{target.source}: found {value!r}, expected a value for each of the {len(keep)} particles")
    return read_label(target, [one for one, kept in zip(value, keep, strict=True) if kept])


def _true_kinematics(batch: Any) -> dict[str, np.ndarray]:
    """Mass and transverse momentum (jets,) in GeV of the generated jets; zero where a jet was matched to none."""
    if any(name not in batch.schema.names for name in _TRUE):
        return {}
    pt, eta, energy = (np.asarray(batch.column(name).to_numpy(zero_copy_only=False), np.float64) for name in _TRUE)
    momentum = pt * np.cosh(eta)
    masses = np.sqrt(np.maximum((energy - momentum) * (energy + momentum), 0.0))
    return {"true_mass": np.nan_to_num(masses), "true_pt": np.nan_to_num(pt)}


def _constituents(path: Path, batch: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Offsets (jets + 1,), momenta (n, 4), charges (n,) and particle kinds (n,) of a batch of jets."""
    offsets: np.ndarray | None = None
    flat: dict[str, np.ndarray] = {}
    for name in batch.schema.names:
        if not name.startswith("part_"):
            continue
        column = batch.column(name)
        if not hasattr(column, "offsets"):
            raise UserError(f"{path}: the branch {name} is {column.type}, expected a list per jet.")
        if column.null_count:
            column = column.fill_null([])
        here = column.offsets.to_numpy()
        here = here - here[0]
        if offsets is not None and not np.array_equal(offsets, here):
            raise UserError(f"{path}: the branches {name} and {_MOMENTA[0]} have lists of different lengths.")
        offsets = here
        flat[name] = column.flatten().to_numpy(zero_copy_only=False)
    if offsets is None:
        raise UserError(f"{path}: no branch part_* found.")
    momenta = np.stack([flat[name] for name in _MOMENTA], axis=1).astype(np.float64)
    types = np.full(len(momenta), 6, np.uint8)
    for kind, flag in enumerate(_FLAGS, start=1):
        if flag in flat:
            types[flat[flag].astype(bool)] = kind
    return offsets, momenta, np.rint(flat["part_charge"]), types


def _labels(batch: Any, one_hot: list[str], label: str | None) -> np.ndarray | None:
    """Class per jet, -1 where the one-hot branches do not name exactly one."""
    if one_hot:
        table = np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in one_hot], axis=1)
        table = table.astype(np.float64) > 0.5
        return np.where(table.sum(axis=1) == 1, table.argmax(axis=1), -1)
    if label:
        return batch.column(label).fill_null(-1).to_numpy(zero_copy_only=False)
    return None


def _jet_momenta(batch: Any) -> np.ndarray | None:
    if not set(_JET) <= set(batch.schema.names):
        return None
    pt, eta, phi, energy = (batch.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in _JET)
    return np.stack([energy, pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)


def one_hot_branches(names: Sequence[str]) -> list[str]:
    """Return the branches of which exactly one is set, the class of the jet."""
    return [name for name in names if name.startswith("label_")]


def _first(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file, truncated perhaps ({error}).") from None
