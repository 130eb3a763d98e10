"""`--launcher ray`: the jobs of a sweep as tasks of a Ray cluster that is running.

The driver hands out the jobs and writes the table. It computes nothing, so it may run where there
is no accelerator. A worker reaches the output directory by the same path as the driver does, which
is that of a bucket or of a filesystem that all machines share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console

import experiments
import vaejax
from experiments import jobs, output, runs
from experiments.cli import UsageError
from experiments.runs import Run

# A worker whose machine is taken away costs a chunk; what kills every worker has to end.
_RETRIES = 10

# Where a machine has died, a file server keeps its locks until their lease is over: 90 s for NFS.
_PATIENCE = 120.0

Needs = dict[str, Any]


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Connects to the Ray cluster that `RAY_ADDRESS` names, or that runs on this machine.

    Yields:
      The module `ray`.

    Raises:
      UsageError: Ray is not installed, or no cluster is found.
    """
    _check_answers(os.environ.get("RAY_ADDRESS", ""))
    for name, value in _environment().items():
        os.environ.setdefault(name, value)
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise UsageError("--launcher ray needs Ray: pip install 'vaejax[ray]'") from error
    packages = [str(Path(package.__path__[0])) for package in (experiments, vaejax)]
    try:
        ray.init("auto", logging_level=logging.ERROR, runtime_env={"py_modules": packages})
    except ConnectionError as error:
        raise UsageError(
            "no Ray cluster is running: `ray start --head` starts one, and `ray start "
            "--address=HEAD:6379` adds a machine; RAY_ADDRESS names one that runs elsewhere"
        ) from error
    except (RuntimeError, ValueError) as error:  # another version, or no address
        raise UsageError(f"cannot join the Ray cluster: {' '.join(str(error).split())}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _environment() -> dict[str, str]:
    """What Ray reads from the environment when it is imported."""
    return {
        # By default, of lines of two workers that differ in numbers alone one is shown.
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "1" if sys.stdout.isatty() else "0",
        # Each takes 40 s, and there are 20 by default, where a cluster has died.
        "RAY_NUM_REDIS_GET_RETRIES": "1",
    }


def _check_answers(address: str) -> None:
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdecimal():
        return  # not an address, or one by which Ray itself finds out soon
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error


def run(
    ray: Any,
    out: epath.Path,
    grid: Sequence[Run],
    console: Console,
    on_finished: Callable[[], object],
) -> list[str]:
    """Completes runs on a cluster, one task per job.

    Each task has a process of its own, which ends with it. Where that dies, the task is done again
    from the last checkpoint; where it raises, the others go on.

    Args:
      ray: The module, connected.
      out: The output directory, absolute.
      grid: The runs.
      console: Told about what has finished.
      on_finished: Called when a job has finished.

    Returns:
      One line for each job that failed.
    """
    needs, slots = requirements(node["Resources"] for node in ray.nodes() if node["Alive"])
    # Backwards, as the VQ-VAE takes longest to measure.
    todo = jobs.split(jobs.unfinished(out, grid), slots)[::-1]
    options = {"max_calls": 1, "max_retries": _RETRIES, **needs}
    task = ray.remote(**options)(_work).options(name="sweep")
    waiting = {task.remote(os.fspath(out), job): runs.label(job) for job in todo}
    failed = []
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            label = waiting.pop(done)
            try:
                what = "left to another process" if ray.get(done) else "finished"
            except ray.exceptions.RayError as error:
                why = _one_line(getattr(error, "cause", None) or error)
                what = f"failed with {why}"
                failed.append(f"{label}: {why}")
            console.print(f"{label}: {what}, {len(waiting)} of {len(todo)} jobs to go")
            on_finished()
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
    return failed


def requirements(nodes: Iterable[Mapping[str, float]]) -> tuple[Needs, int]:
    """What a job asks for, and how many jobs a cluster has room for.

    A job takes a GPU, or all the TPU chips of a machine, or else a CPU.

    Args:
      nodes: The resources of each machine.

    Example:
      >>> requirements([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 2.0}])
      ({'num_gpus': 1}, 2)
      >>> requirements([{"CPU": 8.0, "TPU": 4.0}, {"CPU": 8.0, "TPU": 4.0}])
      ({'resources': {'TPU': 4.0}}, 2)
      >>> requirements([{"CPU": 2.0}])
      ({'num_cpus': 1}, 2)
    """
    nodes = list(nodes)
    if gpus := sum(int(node.get("GPU", 0)) for node in nodes):
        return {"num_gpus": 1}, gpus
    if tpus := [node["TPU"] for node in nodes if node.get("TPU", 0)]:
        return {"resources": {"TPU": min(tpus)}}, len(tpus)
    return {"num_cpus": 1}, sum(int(node.get("CPU", 0)) for node in nodes)


def _work(out: str, job: jobs.Job) -> int:
    """Completes a job in a worker; returns how many of its runs another process holds."""
    preset, directory = job[0].preset, epath.Path(out)
    output.set_up_compiler(preset)
    with output.claim(directory, dataclasses.asdict(preset), fresh=False):
        return len(jobs.complete(directory, [job], output.console(), patience=_PATIENCE))


def _one_line(error: BaseException) -> str:
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
