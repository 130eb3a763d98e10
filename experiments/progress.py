"""Progress of training: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Update = Callable[[int, float], None]

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def training_progress(
    console: Console, label: str, start: int, steps: int, runs: int
) -> Iterator[Update]:
    """Shows the progress of one group of runs that train together.

    Args:
      console: Where to.
      label: Names the group.
      start: Steps that were done before.
      steps: Steps in all.
      runs: How many runs the group has; steps per second count all of them.

    Yields:
      A function to call with the steps done and the mean loss.
    """
    last_time, last_step = time.monotonic(), start

    def rate(done: int) -> float:
        """Steps per second since the last call; the first includes compiling."""
        nonlocal last_time, last_step
        now = time.monotonic()
        speed = (done - last_step) / (now - last_time)
        last_time, last_step = now, done
        return speed

    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(label, total=steps, completed=start, status="compiling")

            def update_bar(done: int, loss: float) -> None:
                status = f"loss {loss:.2f}  {runs * rate(done):.0f} steps/s"
                bar.update(task, completed=done, status=status)

            yield update_bar
        return

    printed = last_time
    console.print(f"{label}: step {start} of {steps}")

    def print_line(done: int, loss: float) -> None:
        nonlocal printed
        speed = rate(done)
        if done == steps or last_time - printed > _SECONDS_BETWEEN_LINES:
            printed = last_time
            console.print(
                f"{label}: step {done} of {steps}, loss {loss:.2f}, {runs * speed:.0f} steps/s, "
                f"{(steps - done) / speed:.0f} s left"
            )

    yield print_line


@contextlib.contextmanager
def counting(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how far a piece of work is.

    Args:
      console: Where to.
      label: Names the work.

    Yields:
      A function to call with how much is done, and of how much.
    """
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(label, total=None, status="")
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    printed = -math.inf

    def print_line(done: int, total: int) -> None:
        nonlocal printed
        now = time.monotonic()
        if done == total or now - printed > _SECONDS_BETWEEN_LINES:
            printed = now
            console.print(f"{label}: {done:,} of {total:,}")

    yield print_line


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
    )
