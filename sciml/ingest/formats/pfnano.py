"""CMS PFNano files (NanoAOD with particle-flow candidates, https://github.com/cms-jet/PFNano): their AK8 jets.

The tree ``Events`` has one list of candidates per event, ``PFCands_*``, and pairs (``FatJetPFCands_jetIdx``,
``FatJetPFCands_pFCandsIdx``) that say which of them are in which ``FatJet``. AK8 jets are made of candidates weighted
by PUPPI against pile-up, so momenta are multiplied by ``PFCands_puppiWeight`` and candidates of weight zero are left
out; their sum is the jet before energy corrections. Simulated files tell the flavour of the hadrons inside.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciml.data.checks import regulate_energies
from sciml.data.records import Record
from sciml.errors import UserError
from sciml.ingest.formats import Options, Rejected, identifier, present, refuse_unused, root_reader

DOMAIN = "hep"
EXTENSIONS = (".root",)
CLASSES = ("light", "c", "b")
_TREE = "Events"
_MOMENTA = ("pt", "eta", "phi", "mass")
_EVENT = ("run", "luminosityBlock", "event")
_CANDIDATES = tuple(f"PFCands_{name}" for name in (*_MOMENTA, "charge", "pdgId", "puppiWeight"))
_PAIRS = ("FatJetPFCands_jetIdx", "FatJetPFCands_pFCandsIdx")
_JETS = tuple(f"FatJet_{name}" for name in _MOMENTA)
_FLAVOUR = "FatJet_hadronFlavour"
_FLAVOURS = {0: 0, 4: 1, 5: 2}  # index in CLASSES
_KINDS = {211: 1, 130: 2, 1: 2, 22: 3, 2: 3, 11: 4, 13: 5}  # 1 and 2 are deposits in the forward calorimeter
_EVENTS = 1000  # read at a time


def sniff(path: Path) -> bool:
    """Return whether the file is ROOT with a tree ``Events``; False where uproot is missing.

    The branches are not looked at here: NanoAOD has so many that it takes a second.
    """
    if path.suffix.lower() not in EXTENSIONS:
        return False
    try:
        import uproot

        with uproot.open(path) as file:
            return _TREE in file.keys(recursive=False, cycle=False)
    except (ImportError, OSError, ValueError):
        return False


def metadata(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the names of the classes, flavours of hadrons, where every file is simulated."""
    simulated = all(_FLAVOUR in _branches(_open(path)) for path in paths)
    return {"classes": list(CLASSES) if simulated else []}


def read(path: Path, options: Options) -> Iterator[Record | Rejected]:
    """Yield one record per AK8 jet, candidates in the order of the pairs. Units are GeV.

    Raises UserError when the file is truncated, a branch is missing, or a key or unit of labels was given.
    """
    refuse_unused(path, options, ())
    tree = _open(path)
    found = _branches(tree)
    for name in (*_EVENT, *_CANDIDATES, *_PAIRS, *_JETS):
        if name not in found:
            raise UserError(f"{path}: the branch {name} is missing in {_TREE}; is it a PFNano file with AK8 jets?")
    branches = [*_EVENT, *_CANDIDATES, *_PAIRS, *_JETS, *([_FLAVOUR] if _FLAVOUR in found else [])]
    for start in range(0, tree.num_entries, _EVENTS):
        stop = min(start + _EVENTS, tree.num_entries)
        try:
            arrays = {name: tree[name].array(entry_start=start, entry_stop=stop, library="np") for name in branches}
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: event {start} or later cannot be read ({error}); is the file whole?") from None
        for event in range(stop - start):
            yield from _jets(path, start + event, {name: array[event] for name, array in arrays.items()})


def _jets(path: Path, number: int, event: dict[str, np.ndarray]) -> Iterator[Record | Rejected]:
    """The jets of one event."""
    candidates = _four_momenta(*(event[f"PFCands_{name}"] for name in _MOMENTA))
    candidates = candidates * event["PFCands_puppiWeight"][:, None]
    jets = _four_momenta(*(event[name] for name in _JETS))
    owners, members = (event[name] for name in _PAIRS)
    pdg = np.abs(event["PFCands_pdgId"])
    for jet, momentum in enumerate(jets):
        name = identifier(path, f"{number}.{jet}")
        chosen = members[owners == jet]
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(candidates)):
            yield Rejected(name, f"{_PAIRS[1]}: index outside the {len(candidates)} candidates of the event")
            continue
        chosen = chosen[candidates[chosen, 0] > 0]
        if not len(chosen):
            yield Rejected(name, f"{_PAIRS[1]}: no candidate with a PUPPI weight above zero")
            continue
        momenta = candidates[chosen].astype(np.float32)
        momenta[:, 0] = regulate_energies(momenta)
        yield present(
            {
                "id": name,
                "group": f"{path.name}:" + ":".join(str(int(event[key])) for key in _EVENT),
                "types": np.array([_KINDS.get(int(code), 6) for code in pdg[chosen]], dtype=np.uint8),
                "momenta": momenta,
                "particle_charge": event["PFCands_charge"][chosen],
                "label": _FLAVOURS.get(int(event[_FLAVOUR][jet])) if _FLAVOUR in event else None,
                "jet_momentum": momentum,
            }
        )


def _four_momenta(pt: np.ndarray, eta: np.ndarray, phi: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """(n, 4) from arrays (n,) in float64; a negative mass, which stands for m^2 < 0, counts as zero."""
    pt, eta, phi, mass = (np.asarray(array, dtype=np.float64) for array in (pt, eta, phi, mass))
    energy = np.sqrt((pt * np.cosh(eta)) ** 2 + np.maximum(mass, 0.0) ** 2)
    return np.stack([energy, pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=1)


def _branches(tree: Any) -> set[str]:
    return set(tree.keys())


def _open(path: Path) -> Any:
    """The tree of events."""
    try:
        return root_reader(path).open(path)[_TREE]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no readable tree {_TREE} ({error}); is the file whole?") from None
