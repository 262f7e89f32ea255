"""Irreducible representations of O(3) as text, checked without a library of them."""

import re

HIGHEST_DEGREE = 4
_TERM = re.compile(r"(?:(\d+)x)?(\d+)([eo])")


def parse_irreps(irreps: str) -> list[tuple[int, int]]:
    """[(copies, degree)] of ``2x0e+2e``; degrees of natural parity up to 4. Raises ValueError otherwise."""
    terms = []
    for text in irreps.replace(" ", "").split("+"):
        found = _TERM.fullmatch(text)
        if found is None:
            raise ValueError(f"found {irreps!r}, expected irreps such as 0e, 1o or 2x0e+2x2e+4e")
        copies, degree, parity = int(found[1] or 1), int(found[2]), found[3]
        if parity != "eo"[degree % 2] or degree > HIGHEST_DEGREE or not copies:
            natural = ", ".join(f"{degree}{'eo'[degree % 2]}" for degree in range(HIGHEST_DEGREE + 1))
            raise ValueError(f"found {text!r} in {irreps!r}, expected degrees of natural parity, {natural}")
        terms.append((copies, degree))
    return terms
