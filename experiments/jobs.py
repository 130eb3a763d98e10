"""Jobs: runs that are done together, apart from all others, and how a process does its share."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from etils import epath
from rich.console import Console

from experiments import locks, runs
from experiments.runs import Run
from vaejax import checkpoint, devices
from vaejax.training import TrainState

Job = list[Run]

_SECONDS_BETWEEN_LOOKS = 5.0


def groups(grid: Iterable[Run]) -> list[Job]:
    """Runs that train in one program, together: those with equal recipes on one dataset."""
    by_program: dict[Any, Job] = {}
    for run in grid:
        by_program.setdefault(run.program(), []).append(run)
    return list(by_program.values())


def split(grid: Sequence[Run], workers: int = 1) -> list[Job]:
    """What can be done apart: the groups, or the single runs if there are more workers than groups.

    A run alone gives what it gives in company.
    """
    together = groups(grid)
    return together if workers <= len(together) else [[run] for run in grid]


def unfinished(out: epath.Path, job: Iterable[Run]) -> list[Run]:
    """The runs of a job that are not measured yet."""
    return [run for run in job if runs.result(out, run) is None]


def complete(
    out: epath.Path,
    todo: Iterable[Job],
    console: Console,
    on_measured: Callable[[], object] = lambda: None,
    *,
    patience: float = 0.0,
) -> list[Run]:
    """Trains and measures the runs of jobs, going on from wherever they are.

    Other processes may do the same in the same directory: a job that one of them holds is passed
    over, and tried again once the others are done. A job is held until it is measured, which it is
    while the next one trains: much of measuring is the host's work, such as growing trees and
    compiling, which leaves a core or an accelerator idle. A run is finished when its
    `metrics.json` exists, which is written last.

    Processes that `jax.distributed` connects all do each job, as the first of them decides.

    Args:
      out: The output directory.
      todo: The jobs.
      console: Told about progress.
      on_measured: Called when a job has been measured.
      patience: Seconds to wait for jobs that others hold, when nothing else is left.

    Returns:
      The runs that others still hold.
    """
    # Backwards, as the VQ-VAE takes longest to measure: nothing trains beside the last job.
    left, said, waited = list(todo)[::-1], False, 0.0
    while left:
        held = _pass(out, left, console, on_measured)
        for job in [] if said else held:
            console.print(f"{runs.label(job)}: another process works on this")
        if len(held) == len(left):
            if waited >= patience:
                break
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            waited += _SECONDS_BETWEEN_LOOKS
        left, said = held, True
    return [run for job in left for run in unfinished(out, job)]


def _pass(
    out: epath.Path, todo: Iterable[Job], console: Console, on_measured: Callable[[], object]
) -> list[Job]:
    """Completes the jobs that nobody else holds, and returns the others."""
    held: list[Job] = []
    dataset: str | None = None
    measuring: Future[None] | None = None
    pool = ThreadPoolExecutor(1)
    try:
        for job in todo:
            with contextlib.ExitStack() as lock:
                found = devices.agree(functools.partial(_take, out, job, lock))
                if found is None:
                    held.append(job)
                    continue
                parts = [[job[index] for index in part] for part in found]
                if not parts:
                    continue
                if dataset not in (None, job[0].dataset):
                    if measuring is not None:
                        measuring.result()
                    # Few programs of one dataset serve another, and a process may have only so many
                    # pieces of memory (65,530 on Linux), of which each program takes dozens.
                    jax.clear_caches()
                dataset = job[0].dataset
                for part in parts:
                    states, seconds = runs.train(out, part, console)
                    if measuring is not None:
                        measuring.result()  # no more than two groups are in memory
                    last = lock.pop_all() if part is parts[-1] else contextlib.ExitStack()
                    measuring = pool.submit(
                        _measure, last, out, part, states, seconds, console, on_measured
                    )
                    if jax.device_count() > 1:
                        measuring.result()  # one thread at a time, see `vaejax.devices`
        if measuring is not None:
            measuring.result()
    finally:
        pool.shutdown(wait=False)
    return held


def _take(out: epath.Path, job: Job, lock: contextlib.ExitStack) -> list[list[int]] | None:
    """Holds a job that is not finished.

    Returns:
      The parts of it that can go on together, as indices of its runs; None if another process
      holds it.
    """
    if not unfinished(out, job):
        return []
    if not lock.enter_context(_hold(out, job)):
        return None
    # Looked at again, as it may have been finished until it was free.
    return [[job.index(run) for run in part] for part in _in_step(out, unfinished(out, job))]


def _measure(
    lock: contextlib.ExitStack,
    out: epath.Path,
    part: Sequence[Run],
    states: TrainState,
    seconds: float,
    console: Console,
    on_measured: Callable[[], object],
) -> None:
    with lock:
        runs.finish_all(out, part, states, seconds, console)
        on_measured()


@contextlib.contextmanager
def _hold(out: epath.Path, job: Job) -> Iterator[bool]:
    """Holds the runs of a job: those who do single runs share their group, but not their run."""
    first, alone = job[0], len(job) == 1
    alike = (dataclasses.replace(first, model=model) for model in first.preset.models)
    group = next(run.model for run in alike if run.program() == first.program())
    names = {f"{first.dataset}.{group}": alone}
    if alone:
        names[f"{first.dataset}.{first.model}.{first.seed}"] = False
    with contextlib.ExitStack() as held:
        yield all(
            held.enter_context(locks.hold(out, name, shared=shared))
            for name, shared in names.items()
        )


def _in_step(out: epath.Path, job: Job) -> list[Job]:
    """The runs of a job by where they go on, so that none which is ahead loses more than a chunk.

    Runs that train together stay within a chunk of each other, but those of one group need not have
    done so: single runs are trained apart.
    """
    steps = {run: max(checkpoint.saved_steps(run.path(out)), default=0) for run in job}
    parts: list[Job] = []
    for run in sorted(job, key=steps.__getitem__):
        if not parts or steps[run] > steps[parts[-1][0]] + run.preset.chunk:
            parts.append([])
        parts[-1].append(run)
    return [[run for run in job if run in part] for part in parts]
