"""JetClass as published: ROOT files with one TTree ``tree`` (Qu et al., 2022; https://zenodo.org/records/6619768).

The branches are those of :mod:`sciml.ingest.formats.jetclass`, the class one-hot in ``label_QCD``, ``label_Hbb``, ....
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, refuse_unused, root_reader
from sciml.ingest.formats.jetclass import one_hot_branches, read_branches, same_classes

DOMAIN = "hep"
TAKES_TARGETS = True
EXTENSIONS = (".root",)
_TREE = "tree"
_BATCH = 2048


def sniff(path: Path) -> bool:
    """Return whether the file is named as a ROOT file."""
    return path.name.lower().endswith(EXTENSIONS)


def metadata(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the names of the classes, those of the one-hot branches."""
    classes: list[str] | None = None
    for path in paths:
        with _open(path) as file:
            here = one_hot_branches(_tree(path, file).keys())
        classes = same_classes(path, here, paths[0], classes)
    return {"classes": [name.removeprefix("label_") for name in classes or []]}


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per jet, constituents in the file's order. Units are GeV.

    Raises UserError when the file is truncated, a branch is missing, or a key or unit of labels was given.
    """
    refuse_unused(path, options, ("targets",))
    with _open(path) as file:
        tree = _tree(path, file)
        yield from read_branches(path, tree.keys(), partial(_batches, tree), options)


def _batches(tree: Any, columns: Sequence[str]) -> Iterator[Any]:
    """Arrow record batches of some branches."""
    import awkward as ak

    for arrays in tree.iterate(columns, step_size=_BATCH, library="ak"):
        yield from ak.to_arrow_table(arrays, extensionarray=False).combine_chunks().to_batches()


def _open(path: Path) -> Any:
    try:
        return root_reader(path).open(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable ROOT file, truncated perhaps ({error}).") from None


def _tree(path: Path, file: Any) -> Any:
    if _TREE not in file:
        found = ", ".join(name.partition(";")[0] for name in file) or "nothing"
        raise UserError(f"{path}: the tree {_TREE!r} of JetClass is missing; the file holds {found}.")
    return file[_TREE]
