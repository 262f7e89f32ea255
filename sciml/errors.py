"""Errors that a person reads: one sentence with what was found, where, what was expected and what to do."""


class SciMLError(Exception):
    """Base of every error that sciml raises on purpose."""


class UserError(SciMLError):
    """A user's mistake (a wrong file, key or value): the command line prints the sentence alone and exits with 2."""


class BadRecord(UserError):
    """One record of a file cannot be used; ingestion quarantines it with this reason and goes on."""
