"""What the command lines share: options, one-line errors, exit statuses.

JAX is imported only once the arguments are known to be well-formed, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from experiments.presets import METRICS, PRECISIONS, PRESETS, SOURCES, Preset

if TYPE_CHECKING:
    from experiments.runs import Run
    from vaejax.checkpoint import Checkpoint


class UsageError(Exception):
    """A wrong argument, or a wrong state of the output directory; the message is one line."""


class JobsFailedError(Exception):
    """Some jobs of a sweep failed while the others went on; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, with the nearest valid option."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        """Prints the line and exits with status 2."""
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")[0].partition("=")[0]
        nearest = difflib.get_close_matches(unknown, self._option_string_actions, n=1)
        hint = f" (did you mean {nearest[0]}?)" if unknown and nearest else ""
        self.exit(2, f"{self.prog}: {message}{hint}; see --help\n")


def preset_name(name: str) -> str:
    """An argparse type: the name of a preset."""
    return _known("preset", name, PRESETS)


def model_name(name: str) -> str:
    """An argparse type: the name of an architecture of the zoo."""
    from vaejax import zoo

    return _known("model", name, zoo.ZOO)


def dataset_name(name: str) -> str:
    """An argparse type: the name of a dataset, `dsprites` or `dsprites@chain`."""
    from vaejax import data

    try:
        data.check_name(name)
    except data.DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def metric_name(name: str) -> str:
    """An argparse type: something that can be measured."""
    return _known("metric", name, METRICS)


def natural(text: str) -> int:
    """An argparse type: an integer that is at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """An argparse type: an integer that is at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """An argparse type: a number above 0 and up to 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, got {text!r}")
    return number


def shard(text: str) -> tuple[int, int]:
    """An argparse type: `I/N`, the I-th of N shares, counted from 1.

    Example:
      >>> shard("8/8")
      (8, 8)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(
            f"expected I/N with I from 1 to N, such as 1/8 to 8/8, got {text!r}"
        )
    return int(index), int(count)


def _known(kind: str, name: str, known: Any) -> str:
    if name not in known:
        from vaejax.errors import unknown_name

        raise argparse.ArgumentTypeError(unknown_name(kind, name, known))
    return name


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds what the sweep and a single run have in common.

    Args:
      parser: Where to.
      out: The default output directory, as the help says it.
    """
    names = ", ".join(PRESETS)
    parser.add_argument(
        "--preset", type=preset_name, default="demo", help=f"one of {names} (default: demo)"
    )
    parser.add_argument(
        "--source",
        choices=SOURCES,
        help="images redrawn here (the default), or the published ones as far as they are there",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of matrix products, on accelerators that are faster with less (default: float32)",
    )
    parser.add_argument("--out", metavar="DIR", help=f"output directory (default: {out})")
    parser.add_argument("--steps", type=positive, metavar="N", help="steps of each run")
    add_metrics(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="delete what the output directory holds, start over"
    )


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of what is measured."""
    parser.add_argument(
        "--metrics",
        nargs="+",
        type=metric_name,
        metavar="NAME",
        help=f"measure these only: {', '.join(METRICS)}",
    )


def resolve(name: str, overrides: Mapping[str, Any]) -> Preset:
    """A preset with the options that were given; values that are None were not given."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in overrides.items()
        if value is not None
    }
    preset = dataclasses.replace(PRESETS[name], **given)
    for option in ("datasets", "models", "seeds", "metrics"):
        values = getattr(preset, option)
        repeated = sorted({str(value) for value in values if values.count(value) > 1})
        if repeated:
            raise UsageError(f"--{option} names {', '.join(repeated)} more than once")
    return preset


def check_names(kind: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Checks names that only a dataset or a model knows.

    Raises:
      UsageError: One is unknown.
    """
    from vaejax.errors import unknown_name

    for name in given:
        if name not in known:
            raise UsageError(unknown_name(kind, name, known))


def restore(path: str) -> tuple[Run, Checkpoint]:
    """The run of a directory, and its last checkpoint.

    Raises:
      UsageError: There is none that can be read.
    """
    from experiments import runs
    from vaejax import checkpoint

    try:
        restored = checkpoint.restore(path)
        return runs.Run.from_config(restored.config), restored
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise UsageError(str(error)) from error


def run(prog: str, main: Callable[[], None]) -> NoReturn:
    """Runs a command line.

    What goes wrong is one line; the status is 2 for wrong input, 1 for failed jobs, 130 for an
    interruption.
    """
    from vaejax.data import DataError

    try:
        main()
    except (UsageError, DataError) as error:
        sys.exit(_fail(prog, str(error), 2))
    except JobsFailedError as error:
        sys.exit(_fail(prog, str(error), 1))
    except KeyboardInterrupt:
        status = _fail(prog, "interrupted; the same command goes on from the last checkpoint", 130)
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: a program that XLA is still running would lose what it works on, and crash.
        os._exit(status)
    sys.exit(0)


def _fail(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {message}", file=sys.stderr)
    return status
