"""Errors that a person reads: one sentence with what was found, where, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class SciMLError(Exception):
    """Base of every error that sciml raises on purpose."""


class UserError(SciMLError):
    """A user's mistake (a wrong file, key or value): the command line prints the sentence alone and exits with 2."""


class BadRecord(UserError):
    """One record of a file cannot be used; ingestion quarantines it with this reason and goes on."""


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `` (did you mean X?)`` for the one of ``known`` that is spelled most like ``word``, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""
