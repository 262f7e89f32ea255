"""The command line: ``sciml VERB [group=option] [key=value] [-v] [--help]``.

Nothing heavy is imported before a verb runs, so that ``sciml --help`` answers at once. Exit codes: 0 done, 1 a check
failed, 2 a user's mistake, 130 interrupted by hand, 143 preempted.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sciml import __version__
from sciml.errors import UserError, did_you_mean
from sciml.launch import PREEMPTED, end_with_parent, let_first_rank_leave, started_by_first_rank

MISTAKE, INTERRUPTED = 2, 130
OPTIONS = ("--help", "--verbose", "--version", "--config-dir", "--multirun")
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}


@dataclass(frozen=True)
class Verb:
    """One thing that sciml does: the function behind it, a line about it, and a command to copy."""

    function: str
    summary: str
    example: str
    announce: bool = False


VERBS = {
    "ingest": Verb("sciml.ingest.ingest:run", "turn foreign files into a store", "source=train.xyz output=stores/mine"),
    "inspect": Verb("sciml.ingest.inspect:run", "describe a store, a file or a model", "source=train.xyz"),
    "audit": Verb("sciml.ingest.findings:run", "say what is wrong with a store or a file", "source=stores/mine"),
    "split": Verb("sciml.ingest.split:run", "cut data into leak-free parts", "source=stores/mine output=parts/mine"),
    "heat": Verb(
        "sciml.ingest.generate.heated:run",
        "make hot configurations of molecules",
        "source=train.xyz output=stores/hot",
    ),
    "train": Verb("sciml.verbs.train:train", "train a model", "experiment=quickstart", announce=True),
    "evaluate": Verb(
        "sciml.verbs.evaluate:evaluate",
        "measure the errors of a trained model",
        "package=runs/NAME/TIME store=test.xyz",
    ),
    "verify": Verb(
        "sciml.verbs.verify:verify",
        "certify which physical laws a model obeys",
        "package=runs/NAME/TIME output=certificate",
    ),
    "doctor": Verb("sciml.doctor.run:run", "say what would go wrong with a training", "experiment=quickstart"),
}

USAGE = """\
usage: sciml VERB [group=option] [key=value] [-v] [--config-dir DIR] [--help]

{verbs}

  sciml VERB --help     the groups and keys of a verb, with their defaults
  -v, --verbose         print the composed configuration first
  -m, --multirun        train once for every combination of values, such as model=tiny,small seed=0,1
  --config-dir DIR      add your own options, such as DIR/experiment/mine.yaml
  --version             print the version

start here: sciml train experiment=quickstart
"""


@dataclass
class Words:
    """The command line, sorted."""

    verb: str | None
    overrides: list[str]
    help: bool = False
    version: bool = False
    verbose: bool = False
    multirun: bool = False
    config_dir: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake is one sentence on stderr, without a traceback."""
    if started_by_first_rank():
        end_with_parent()  # else it would wait for the first rank in a collective, on a GPU for hours
    code = _answered(argv)
    if code:
        let_first_rank_leave()
    return code


def _answered(argv: Sequence[str] | None) -> int:
    """Run one command and turn what it raises into sentences and exit codes."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    try:
        with _terminated_as_exit():
            return _run(_sort(list(sys.argv[1:] if argv is None else argv)))
    except UserError as error:
        print(f"sciml: {error}", file=sys.stderr)
        return MISTAKE
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if error.errno not in REFUSALS:
            raise
        print(f"sciml: {error.filename or 'a file'} cannot be used: {error.strerror}.", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("sciml: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(words: Words) -> int:
    """Answer what needs no configuration, then compose it and call the verb's function."""
    # OpenMP threads that wait by spinning starve each other where a machine has other work or fewer cores than it
    # shows (steps were measured 15 times slower), and to wake those that sleep takes a fifth of a step: they spin for
    # a moment. OpenMP reads this once, when torch is loaded; it would overrule a policy that the user has set.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if words.version:
        print(f"sciml {__version__}")
        return 0
    if words.verb is None:
        print(_usage(), end="", file=sys.stdout if words.help else sys.stderr)
        return 0 if words.help else MISTAKE
    if words.help:
        print(verb_help(words.verb, words.config_dir), end="")
        return 0
    verb = VERBS[words.verb]
    if verb.announce:
        print(f"sciml {__version__} {words.verb} {' '.join(words.overrides)}".rstrip(), flush=True)
    if words.multirun:
        from sciml.sweep import run

        return run(words.verb, words.overrides, words.config_dir)
    from sciml.config import check_inputs, configure, to_yaml

    config = configure(words.verb, words.overrides, words.config_dir)
    if words.verbose:
        print(to_yaml(config), end="", flush=True)
    check_inputs(config)
    return int(_function(verb)(config) or 0)


def _sort(argv: list[str]) -> Words:
    """Sort the words of the command line; raises UserError for an option or a verb that does not exist."""
    words = Words(verb=None, overrides=[])
    rest = iter(argv)
    for word in rest:
        if word in ("-h", "--help"):
            words.help = True
        elif word == "--version":
            words.version = True
        elif word in ("-v", "--verbose"):
            words.verbose = True
        elif word in ("-m", "--multirun"):
            words.multirun = True
        elif word == "--config-dir" or word.startswith("--config-dir="):
            words.config_dir = word.partition("=")[2] or next(rest, None)
            if not words.config_dir:
                raise UserError("--config-dir: found nothing, expected a folder.")
        elif word.startswith("-"):
            raise UserError(_unknown_option(word))
        elif words.verb is None:
            words.verb = word
        else:
            words.overrides.append(word)
    if words.verb is not None and words.verb not in VERBS:
        raise UserError(f"{words.verb!r} is not a verb, expected one of {', '.join(VERBS)}{_close(words.verb, VERBS)}.")
    if words.multirun and words.verb != "train":
        raise UserError(f"-m: found with {words.verb or 'no verb'}, expected with train.")
    return words


def _unknown_option(word: str) -> str:
    """Say what was probably meant by an option: another option, or ``key=value`` written with dashes."""
    name = word.lstrip("-")
    if word.startswith("--") and ("=" in name or not _close(word, OPTIONS)):
        return f"{word!r} is not an option; a key is written without dashes, such as {name.partition('=')[0]}=VALUE."
    return f"{word!r} is not an option, expected one of {', '.join(OPTIONS)}{_close(word, OPTIONS)}."


def _close(word: str, known: Any) -> str:
    return did_you_mean(word, known, cutoff=0.7)


def _function(verb: Verb) -> Callable[[Any], int | None]:
    """Import the function of a verb."""
    module, _, name = verb.function.partition(":")
    return getattr(import_module(module), name)


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 unwind the stack, so that nothing is left half written; training has its own handler."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(PREEMPTED)

    try:
        before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGUSR1)}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _usage() -> str:
    width = max(map(len, VERBS))
    return USAGE.format(verbs="\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()))


def verb_help(verb: str, config_dir: str | None = None) -> str:
    """Return the help of one verb: its groups with their options, its keys with type, default and explanation."""
    from sciml.config import compose, default_of, groups, keys, type_name
    from sciml.schema import CONFIGS

    raw = compose(verb, [], config_dir)
    lines = [f"sciml {verb}: {VERBS[verb].summary}", "", f"  sciml {verb} {VERBS[verb].example}", ""]
    found = groups(verb, config_dir)
    if found:
        lines += ["groups (group=option; each sets the keys below that begin with its name, experiment sets any)", ""]
        width = max(map(len, found))
        lines += [f"  {name:<{width}}  {', '.join(options)}" for name, options in found.items()] + [""]
    lines += ["keys (key=value)", ""]
    section = None
    for key, field in keys(CONFIGS[verb]):
        head = key.partition(".")[0] if "." in key else None
        if head != section:
            lines.append("")
            section = head
        lines.append(f"  {key}={default_of(raw, key)}  ({type_name(field)})")
        lines.append(f"      {field.description}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
