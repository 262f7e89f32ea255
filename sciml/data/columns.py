"""Records as Arrow columns: one record batch per shard, read back as numpy views on the memory map.

A graph-level value is a primitive or fixed-size-list column, a node-level array a large-list column, text a
large-string column. An absent label is an Arrow null. Nothing is compressed: a compressed column cannot be read
without a copy.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sciml.data.records import Field, Record
from sciml.errors import UserError


def write_shard(path: Path, records: Sequence[Record], fields: Sequence[Field]) -> None:
    """Write ``records`` as one Arrow IPC file; fields that no record has get no column."""
    columns = {field.name: _encode(field, records) for field in fields if any(field.name in r for r in records)}
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _encode(field: Field, records: Sequence[Record]) -> pa.Array:
    missing = np.array([field.name not in record for record in records])
    mask = pa.array(missing) if missing.any() else None
    if field.dtype == "str":
        return pa.array([record.get(field.name) for record in records], type=pa.large_string())
    dtype = "uint8" if field.dtype == "bool" else field.dtype  # Arrow packs booleans into bits: no view possible
    if field.level == "graph":
        empty = np.zeros(field.shape, dtype)
        values = np.stack([np.asarray(record.get(field.name, empty), dtype) for record in records])
        return _fixed(values, field.width, mask)
    empty = np.zeros((0, *field.shape), dtype)
    arrays = [np.asarray(record.get(field.name, empty), dtype) for record in records]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    return pa.LargeListArray.from_arrays(pa.array(offsets), _fixed(np.concatenate(arrays), field.width), mask=mask)


def _fixed(values: np.ndarray, width: int, mask: pa.Array | None = None) -> pa.Array:
    flat = np.ascontiguousarray(values).reshape(-1)
    if values.ndim == 1:
        return pa.array(flat, mask=None if mask is None else mask.to_numpy(zero_copy_only=False))
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width, mask=mask)


def _view(array: np.ndarray) -> memoryview:
    return memoryview(array)  # type: ignore[arg-type]  # numpy declares the buffer protocol from Python 3.12 on


class Column:
    """Views on one column of a shard.

    ``values`` is (records, *shape) for a graph-level field and (all nodes, *shape) with ``offsets`` (records + 1,) for
    the others (bytes for text); ``present`` (records,) is None where every record has the field.
    """

    def __init__(self, field: Field, array: pa.Array) -> None:
        self.field = field
        self.present = None if array.null_count == 0 else array.is_valid().to_numpy(zero_copy_only=False)
        self.offsets: np.ndarray | None = None
        if field.dtype == "str":
            _, offsets, data = array.buffers()
            self.offsets = np.frombuffer(offsets, np.int64)[: len(array) + 1]
            self.values = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
            # Indexing a memoryview gives a Python int in half the time that numpy takes for a scalar.
            self.starts, self.bytes = _view(self.offsets), _view(self.values)
            return
        if field.level != "graph":
            self.offsets = array.offsets.to_numpy()
            array = array.values
        if field.shape:
            array = array.values
        values = np.frombuffer(array.buffers()[1], "uint8" if field.dtype == "bool" else field.dtype)
        values = values[array.offset : array.offset + len(array)].reshape(-1, *field.shape)
        self.values = values.view(bool) if field.dtype == "bool" else values

    @property
    def lengths(self) -> np.ndarray:
        """Nodes per record, int64 (records,)."""
        if self.offsets is None:
            raise TypeError(f"{self.field.name} is a graph-level field and has no nodes")
        return np.diff(self.offsets)

    def text(self, index: int) -> str:
        """Return the text of record ``index``."""
        return str(self.bytes[self.starts[index] : self.starts[index + 1]], "utf-8")

    def get(self, index: int) -> Any:
        """Return the value of record ``index``, whatever the level."""
        if self.field.dtype == "str":
            return self.text(index)
        if self.offsets is not None:
            return self.values[self.offsets[index] : self.offsets[index + 1]]
        return self.values[index] if self.field.shape else self.values[index].item()


class Shard:
    """One memory-mapped shard; :meth:`read` costs a few microseconds because every view is made here, once."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        try:
            self._map = pa.memory_map(str(path))
            reader = pa.ipc.open_file(self._map)
            batch = reader.get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: not a readable Arrow file ({error}); ingest the source again.") from None
        self.length = batch.num_rows
        names = [name for name in batch.schema.names if name in fields]
        self.columns = {name: Column(fields[name], batch.column(name)) for name in names}
        self._plan()

    def _plan(self) -> None:
        """Sort the columns by how a record is cut out of them; complete node columns share one pair of offsets."""
        self._values: list[tuple[str, Sequence[Any] | np.ndarray]] = []
        self._texts: list[tuple[str, Callable[[int], str]]] = []
        self._levels: list[tuple[memoryview, list[tuple[str, np.ndarray]]]] = []
        self._partial: list[Column] = []
        by_level: dict[str, list[tuple[str, np.ndarray]]] = {}
        for name, column in self.columns.items():
            if name.startswith("_"):
                continue
            if column.present is not None:
                self._partial.append(column)
            elif column.field.dtype == "str":
                self._texts.append((name, column.text))
            elif column.offsets is None:
                self._values.append((name, column.values if column.field.shape else _view(column.values)))
            else:
                if column.field.level not in by_level:
                    by_level[column.field.level] = []
                    self._levels.append((_view(column.offsets), by_level[column.field.level]))
                by_level[column.field.level].append((name, column.values))

    def read(self, index: int) -> Record:
        """Return record ``index``: read-only views, Python scalars and text; absent fields are left out."""
        record: dict[str, Any] = {}
        for name, values in self._values:
            record[name] = values[index]
        for offsets, columns in self._levels:
            start, stop = offsets[index], offsets[index + 1]
            for name, array in columns:
                record[name] = array[start:stop]
        for name, text in self._texts:
            record[name] = text(index)
        for column in self._partial:
            if column.present[index]:  # type: ignore[index]
                record[column.field.name] = column.get(index)
        return record

    def present(self, name: str) -> np.ndarray:
        """Return, per record, whether it has the field ``name``, bool (records,)."""
        column = self.columns.get(name)
        if column is None:
            return np.zeros(self.length, bool)
        return np.ones(self.length, bool) if column.present is None else column.present
