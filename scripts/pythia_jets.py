#!/usr/bin/env python3
"""Make jets with Pythia 8 and FastJet and write them to one plain .npz file of flat arrays.

A program of its own: Pythia 8 and FastJet are GPL, so nothing of the sciml package imports them or this file;
the package runs it as a process and reads what it writes (``sciml.ingest.generate.jets``).

    python pythia_jets.py --process top --jets 1000 --seed 1 --output top.npz

Proton-proton collisions at 13 TeV (Monash tune, with showers, hadronisation and multiple interactions), anti-kT jets
of R = 0.8 from all visible particles of |eta| < 5, the jet within |eta| < 2. Tops, W and Z decay to quarks only; their
jets have the resonance within R of the axis, so that some tops are not contained. At most one jet of an event is kept.
Constituents under ``--minimum-pt`` are dropped, the rest is sorted by pT and cut at ``--constituents``. Hard
scatterings are sampled with a pT power bias and kept with weight 1, so that every class has a nearly flat pT spectrum.
"""

import argparse
import math
import sys

import numpy as np

RADIUS = 0.8
HARD_QCD = ["HardQCD:all = on"]
TOP = ["Top:gg2ttbar = on", "Top:qqbar2ttbar = on", "24:onMode = off", "24:onIfAny = 1 2 3 4 5"]
W = ["WeakBosonAndParton:qqbar2Wg = on", "WeakBosonAndParton:qg2Wq = on", "24:onMode = off", "24:onIfAny = 1 2 3 4 5"]
Z = [
    "WeakBosonAndParton:qqbar2gmZg = on",
    "WeakBosonAndParton:qg2gmZq = on",
    "WeakZ0:gmZmode = 2",
    "23:onMode = off",
    "23:onIfAny = 1 2 3 4 5",
]
# process: settings, PDG code of the resonance (0: none), power that flattens the pT spectrum of the process
PROCESSES: dict[str, tuple[list[str], int, float]] = {
    "qcd": (HARD_QCD, 0, 6.0),
    "top": (TOP, 6, 6.0),
    "w": (W, 24, 6.0),
    "z": (Z, 23, 6.0),
}


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Make jets with Pythia 8 and FastJet.")
    parser.add_argument("--process", choices=sorted(PROCESSES), required=True)
    parser.add_argument("--jets", type=int, required=True, help="number of jets to write")
    parser.add_argument("--seed", type=int, required=True, help="1 to 900000000")
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--pt", type=float, nargs=2, default=(500.0, 650.0), metavar=("MIN", "MAX"), help="GeV")
    parser.add_argument("--constituents", type=int, default=64, help="most constituents kept of a jet, by pT")
    parser.add_argument("--minimum-pt", type=float, default=0.0, help="least pT of a constituent, GeV")
    return parser.parse_args()


def make_pythia(process: str, seed: int, pt: tuple[float, float]):
    """Return an initialised Pythia for one process."""
    import pythia8mc as pythia8

    settings, _, power = PROCESSES[process]
    pythia = pythia8.Pythia("", False)
    common = [
        "Print:quiet = on",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
        "Beams:eCM = 13000.",
        # the jet's pT scatters about that of the hard process, hence the margins
        f"PhaseSpace:pTHatMin = {0.85 * pt[0]}",
        f"PhaseSpace:pTHatMax = {1.4 * pt[1]}",
        "PhaseSpace:bias2Selection = on",
        f"PhaseSpace:bias2SelectionPow = {power}",
        f"PhaseSpace:bias2SelectionRef = {pt[0]}",
    ]
    for line in common + settings:
        if not pythia.readString(line):
            raise SystemExit(f"pythia_jets: Pythia does not accept {line!r}.")
    if not pythia.init():
        raise SystemExit("pythia_jets: Pythia could not be initialised.")
    return pythia


def kind(particle) -> int:
    """Return the code of a particle kind: 1 charged hadron, 2 neutral hadron, 3 photon, 4 electron, 5 muon, 6 other."""
    code = particle.idAbs()
    if code == 22:
        return 3
    if code == 11:
        return 4
    if code == 13:
        return 5
    if particle.isHadron():
        return 1 if particle.isCharged() else 2
    return 6


def resonances(event, code: int) -> list:
    """Return the last copies of the resonances ``code`` of the hard process, before they decay to quarks."""
    # the hard process comes first in the event; status 22: its resonances
    first = [i for i in range(min(event.size(), 20)) if event[i].idAbs() == code and event[i].statusAbs() == 22]
    return [event[event[i].iBotCopyId()] for i in first]


def find_jet(event, code: int, pt: tuple[float, float], definition):
    """Return the leading jet of an event that fits the class with its particles, or None."""
    import fastjet

    visible = [p for p in (event[i] for i in range(event.size())) if p.isFinal() and p.isVisible() and abs(p.eta()) < 5]
    pseudojets = []
    for index, particle in enumerate(visible):
        pseudojet = fastjet.PseudoJet(particle.px(), particle.py(), particle.pz(), particle.e())
        pseudojet.set_user_index(index)
        pseudojets.append(pseudojet)
    sequence = fastjet.ClusterSequence(pseudojets, definition)
    jets = fastjet.sorted_by_pt(sequence.inclusive_jets(pt[0]))
    wanted = resonances(event, code) if code else []
    for jet in jets:
        azimuth = jet.phi_std()
        if jet.pt() > pt[1] or abs(jet.eta()) > 2:
            continue
        if code and not any(close(jet.eta(), azimuth, particle) for particle in wanted):
            continue
        return jet, [visible[c.user_index()] for c in jet.constituents()]
    return None


def close(eta: float, phi: float, particle) -> bool:
    """Tell whether a particle lies within the radius of an axis."""
    return math.hypot(particle.eta() - eta, math.remainder(particle.phi() - phi, 2 * math.pi)) < RADIUS


def main() -> int:
    """Write the file; exit code 3 means that Pythia 8 or FastJet is not installed."""
    try:
        import fastjet
        import pythia8mc  # noqa: F401
    except ImportError as error:
        print(f"pythia_jets: {error}.", file=sys.stderr)
        return 3
    args = arguments()
    pythia = make_pythia(args.process, args.seed, tuple(args.pt))
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)
    code = PROCESSES[args.process][1]
    momenta, kinds, charges, counts, totals, events = [], [], [], [], [], []
    number = 0
    while len(counts) < args.jets:
        number += 1
        if not pythia.next():
            continue
        found = find_jet(pythia.event, code, tuple(args.pt), definition)
        if found is None:
            continue
        jet, particles = found
        particles = sorted((p for p in particles if p.pT() >= args.minimum_pt), key=lambda p: -p.pT())
        particles = particles[: args.constituents]
        momenta += [(p.e(), p.px(), p.py(), p.pz()) for p in particles]
        kinds += [kind(p) for p in particles]
        charges += [round(p.charge()) for p in particles]
        counts.append(len(particles))
        totals.append((jet.e(), jet.px(), jet.py(), jet.pz()))
        events.append(number)
    np.savez(
        args.output,
        momenta=np.array(momenta, np.float64),
        kinds=np.array(kinds, np.uint8),
        charges=np.array(charges, np.int8),
        counts=np.array(counts, np.int64),
        jet_momenta=np.array(totals, np.float64),
        events=np.array(events, np.int64),
        version=np.array(str(pythia.settings.parm("Pythia:versionNumber"))),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
