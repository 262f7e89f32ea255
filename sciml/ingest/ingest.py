"""``sciml ingest``: foreign files to a store, and raw files opened on the fly where a store is expected."""

import glob
import hashlib
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sciml import registry
from sciml.data.records import kinds, own_kind
from sciml.data.store import Store, StoreWriter, is_store
from sciml.data.targets import Target, target_of
from sciml.errors import UserError
from sciml.ingest.audit import Audit
from sciml.ingest.formats import Options, Rejected, carries, say
from sciml.ingest.formats.mlearn import load_json

# Narrow formats first: ASE would try to read almost anything.
_ORDER = (
    "mptrj", "mlearn", "aselmdb", "spice", "toptagging", "quarkgluon", "jetclass", "pfnano", "jetclass_root", "protein",
    "complexes", "ase",
)  # fmt: skip
_SHOWN = 5  # refused records that are printed; the file has all


def run(config: Any) -> int:
    """Ingest ``config.source`` into ``config.output``; the keys are those of configs/ingest.yaml."""
    given = {name: getattr(config, name, None) for name in Options.__dataclass_fields__ if name != "targets"}
    targets = _targets_of(config)
    options = Options(**{name: value for name, value in given.items() if value is not None}, targets=targets)
    store = ingest(
        config.source,
        config.output,
        reader=config.format,
        dataset=config.dataset,
        licence=getattr(config, "licence", None),
        options=options,
        only=config.only,
        overwrite=config.overwrite,
    )
    say(f"{store.path}: next, sciml inspect source={store.path}")
    return 0


def _targets_of(config: Any) -> tuple[Target, ...]:
    """The targets of a configuration, of the kind of graph that the domain of the files has unless they say so."""
    described = getattr(config, "targets", {})
    if not described:
        return ()
    module = registry.resolve("readers", config.format or detect(expand(config.source)[0]))
    kind = own_kind(module.DOMAIN)
    return tuple(target_of(name, {"kind": kind, **facts}) for name, facts in described.items())


def ingest(
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    reader: str | None = None,
    dataset: str | None = None,
    licence: str | None = None,
    options: Options | None = None,
    only: str | None = None,
    overwrite: bool = False,
) -> Store:
    """Read ``source`` (a path, several, or a pattern) into the store ``output`` and return it.

    ``reader`` names a format (None: told from the files); ``dataset`` is the level of theory (None: the name of the
    first file); ``only`` names the records to keep, see :func:`listed_names`. A bad record among good ones is
    quarantined, counted and printed. Raises UserError when a file is unreadable, truncated or without any good record,
    when it cannot have a target, when units are impossible, or when the output exists; nothing is left behind then.
    """
    options = options or Options()
    paths = expand(source)
    name = reader or detect(paths[0])
    module = registry.resolve("readers", name)
    for target in options.targets:
        if not carries(module, target):
            raise UserError(f"{paths[0]}: {not_carried(name, target)}.")
        if target.kind not in kinds(module.DOMAIN):
            raise UserError(
                f"{paths[0]}: the target {target.name} is of graphs of kind {target.kind}, but {module.DOMAIN} records "
                f"become graphs of {' or '.join(kinds(module.DOMAIN))}; set its kind to that."
            )
    extra = module.metadata(paths) if hasattr(module, "metadata") else {}
    metadata = {"licence": licence or "", "source": ", ".join(path.name for path in paths), "format": name, **extra}
    dataset = dataset or paths[0].name.split(".")[0]
    kept = listed_names(only) if only else None
    with StoreWriter(
        output, module.DOMAIN, dataset, metadata=metadata, overwrite=overwrite, targets=options.targets
    ) as writer:
        for path in paths:
            _ingest_file(path, module, options, writer, kept)
        store = writer.close()
    _report(store, writer.quarantine)
    return store


def open_data(
    path: str | Path | Sequence[str | Path], *, cache_dir: str | Path | None = None, options: Options | None = None
) -> Store:
    """Open a store, or ingest a raw file, or several of one format as one store, on the fly and say so.

    With ``cache_dir`` the store is kept there under the first file's name and a content hash, and reused; otherwise it
    lives in a temporary folder as long as the returned Store. Raises UserError as :func:`ingest` and :class:`Store` do.
    """
    if isinstance(path, str | Path) and Path(path).is_dir():
        return Store(path)
    paths = expand(path)
    if options and options.targets:
        options = replace(options, targets=_carried(paths[0], options.targets))
    if cache_dir is None:
        folder = tempfile.TemporaryDirectory(prefix="sciml-")
        store = _ingest_once(paths, Path(folder.name) / "store", options)
        weakref.finalize(store, folder.cleanup)
        return store
    digest = hashlib.sha256(repr(options or Options()).encode())
    for one in paths:
        digest.update(f"{one.name}\0".encode())
        with open(one, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return _ingest_once(paths, Path(cache_dir) / f"{paths[0].name.split('.')[0]}-{digest.hexdigest()[:12]}", options)


def _carried(path: Path, targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """Those of ``targets`` that a file can have; says which of its domain it cannot, since others may have them."""
    name = detect(path)
    module = registry.resolve("readers", name)
    ours = [target for target in targets if target.kind in kinds(module.DOMAIN)]
    for target in ours:
        if not carries(module, target):
            say(f"{path}: read without the target {target.name}: {not_carried(name, target)}")
    return tuple(target for target in ours if carries(module, target))


def not_carried(reader: str, target: Target) -> str:
    """Why files of a reader cannot have a target, and what can."""
    only = getattr(registry.resolve("readers", reader), "TAKES_TARGETS", ())
    what = f"only targets with column={' or '.join(only)}" if only else "no targets beyond those of their domain"
    return (
        f"files of the format {reader} hold {what}, not {target.source!r}; labels of one's own are read from extended "
        "XYZ, from tables (.csv) of protein structures and from the branches of jets in parquet or ROOT"
    )


def expand(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of ``source``: paths as typed, or patterns. Raises UserError when none exists."""
    items = [source] if isinstance(source, str | Path) else list(source)
    paths: list[Path] = []
    for item in items:
        path = Path(item)
        if path.is_file():
            paths.append(path)
        elif is_store(path):
            raise UserError(f"{item}: this is a store already; give it to `sciml inspect` or `sciml train`.")
        elif path.is_dir():
            raise UserError(f"{item}: a folder found, expected files; give a pattern such as {item}/*.")
        else:
            found = sorted(one for one in map(Path, glob.glob(str(item), recursive=True)) if one.is_file())
            if not found:
                raise UserError(f"{item}: no such file; check the path (quote it in the shell if it is a pattern).")
            paths += found
    if not paths:
        raise UserError("source: no file was given, expected one path or more.")
    return paths


def detect(path: Path) -> str:
    """Return the name of the reader that recognises ``path``. Raises UserError when none does, or the file is empty."""
    try:
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}).") from None
    if size == 0:
        raise UserError(f"{path}: the file is empty, it holds no records; get the whole file.")
    known = registry.names("readers")
    for name in (*_ORDER, *(name for name in known if name not in _ORDER)):
        if registry.resolve("readers", name).sniff(path):
            return name
    raise UserError(f"{path}: no reader recognises this file; name one with format=, of {', '.join(known)}.")


def listed_names(source: str) -> set[str]:
    """Return the names of records in ``FILE.json``, a list, or in the list under KEY of ``FILE.json:KEY``.

    A record's name is its id, or what follows the ``#`` in it. Raises UserError where there is no such list.
    """
    path, _, key = source.partition(":")
    if not Path(path).is_file():
        raise UserError(f"only: {path!r} does not exist; give a JSON file with the names of the records to keep.")
    content = load_json(Path(path))
    if key and not (isinstance(content, dict) and key in content):
        known = ", ".join(content) if isinstance(content, dict) else "a list"
        raise UserError(f"only: {path} has no key {key!r}; it holds {known}.")
    names = content[key] if key else content
    if not isinstance(names, list):
        known = f"; name one of its keys, {', '.join(names)}" if isinstance(names, dict) else ""
        raise UserError(f"only: {source} is no list of names{known}.")
    return {str(name) for name in names}


def _ingest_file(path: Path, module: Any, options: Options, writer: StoreWriter, kept: set[str] | None = None) -> None:
    """Add the records of one file, of those with names in ``kept`` alone.

    Raises UserError when it yields none, or only bad ones, or impossible units.
    """
    audit = Audit()
    before, refused = len(writer), len(writer.quarantine)
    for record in module.read(path, options):
        name = record.id if isinstance(record, Rejected) else record["id"]
        if kept is not None and not {name, name.partition("#")[2]} & kept:
            continue
        if isinstance(record, Rejected):
            writer.reject(record.id, record.reason)
            continue
        if writer.add(record):  # one bad record must not make the units of the good ones look wrong
            audit.observe(record)
    if len(writer) == before:
        bad = writer.quarantine[refused:]
        if not bad:
            which = "none of the records named by only=" if kept is not None else "no records"
            raise UserError(f"{path}: the file holds {which}; is it whole, and of the right format?")
        raise UserError(
            f"{path}: none of its {len(bad)} records can be used; the first, {bad[0]['id']}: {bad[0]['reason']}."
        )
    where = f"{path}: record {path.name}#0 and those after it"
    for warning in audit.verdict(where, options.length_unit or "Å", options.energy_unit or "eV", str(path)):
        say(f"warning: {warning}")


def _ingest_once(paths: list[Path], target: Path, options: Options | None) -> Store:
    """Ingest unless ``target`` is there, also when another rank has made it in the meantime."""
    if not is_store(target):
        if len(paths) == 1:
            say(f"{paths[0]}: not a store, ingesting it on the fly into {target}")
        else:
            say(f"{paths[0]} and {len(paths) - 1} more: no stores, ingesting them on the fly as one into {target}")
        try:
            return ingest(paths, target, options=options)
        except UserError:
            if not is_store(target):
                raise
    return Store(target)


def _report(store: Store, quarantine: list[dict[str, str]]) -> None:
    counts = store.manifest["counts"]
    regulated = counts.get("regulated_constituents", 0)
    say(f"{store.path}: {counts['records']:,} {store.domain} records, {counts['fine_nodes']:,} atoms or particles")
    if regulated:
        say(f"  {regulated:,} constituents of negative mass squared were given the smallest allowed energy")
    if quarantine:
        say(f"  {len(quarantine):,} records refused, all listed in {store.path / 'quarantine.jsonl'}:")
        for entry in quarantine[:_SHOWN]:
            say(f"  {entry['id']}: {entry['reason']}")
