"""Progress of training: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
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
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[status]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
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
