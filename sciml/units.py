"""The units of every quantity on disk and in a Graph, and the conversions that readers apply.

Lengths are Å, energies eV, stresses eV/Å^3 (tensile positive, as in ASE), momenta and masses GeV with c = 1,
charges multiples of the elementary charge. Factors follow CODATA 2018.
"""

from sciml.errors import UserError

ANGSTROM = 1.0
EV = 1.0
HARTREE = 27.211386245988
RYDBERG = HARTREE / 2
BOHR = 0.529177210903
KCAL_PER_MOL = 0.0433641153087705
KJ_PER_MOL = 0.0103642696562617
GPA = 0.00624150907446076
KILOBAR = 0.1 * GPA

TO_INTERNAL: dict[str, float] = {
    "": 1.0,
    "Å": ANGSTROM,
    "angstrom": ANGSTROM,
    "nm": 10.0,
    "bohr": BOHR,
    "eV": EV,
    "meV": 1e-3,
    "hartree": HARTREE,
    "rydberg": RYDBERG,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
    "eV/Å": 1.0,
    "hartree/bohr": HARTREE / BOHR,
    "rydberg/bohr": RYDBERG / BOHR,
    "kcal/mol/Å": KCAL_PER_MOL,
    "kJ/mol/nm": KJ_PER_MOL / 10.0,
    "eV/Å^3": 1.0,
    "GPa": GPA,
    "kbar": KILOBAR,
    "GeV": 1.0,
    "MeV": 1e-3,
    "TeV": 1e3,
    "e": 1.0,
}


def factor(unit: str) -> float:
    """Return the number that turns a value in ``unit`` into sciml's unit of the same dimension.

    Raises UserError when the unit is not known.
    """
    try:
        return TO_INTERNAL[unit]
    except KeyError:
        known = ", ".join(u for u in TO_INTERNAL if u)
        raise UserError(f"unit {unit!r} is not known; use one of {known}.") from None
