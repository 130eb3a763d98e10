"""What a preset costs on machines that are not here, from what was measured on this one.

    python -m benchmarks.sweep_scaling --preset paper --no-sweeps
    python -m benchmarks.costs

The first leaves what the runs take here. A step of training elsewhere is extrapolated to take
`max(operations / (peak x share), kernels x launch)`. Operations and kernels are counted in the
compiled program of the step; `peak` is the data sheet's; `share`, what matrices this small reach
of it, and `launch` are assumptions, below. A process divides the operations of a program over its
devices, but each of them launches all kernels; programs are dealt to processes as `--shard` does
it, and the process with most to do counts. Measuring is taken to be no faster than here: an upper
bound.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys

from benchmarks import common
from experiments import jobs, runs
from experiments.estimate import cost, lower
from experiments.presets import PRESETS, Preset


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where equal processes do jobs of their own, each over all devices of its host.

    Attributes:
      name: With the precision of products.
      workers: Processes, which train and measure.
      devices: Of each.
      peak: Operations per second of one device in products of that precision, by its data sheet.
      share: Of the peak, as assumed.
      launch: Seconds of a kernel that has next to nothing to do, as assumed.
    """

    name: str
    workers: int
    devices: int
    peak: float
    share: float
    launch: float


# H100 SXM: 67 TFLOP/s in float32, 495 in TensorFloat-32 (dense). TPUs multiply bfloat16: v2 in 22.5
# TFLOP/s a core, v5e in 197 a chip; a float32 product takes six of these. Layers of 32 to 64
# channels fill a quarter to a half of the 128 columns of a TPU's matrix unit, and about half of
# that may be lost to memory; a GPU's float32 units know no such width.
MACHINES = (
    Machine("H100, float32", 1, 1, 67e12, 0.2, 4e-6),
    Machine("H100, tensorfloat32", 1, 1, 495e12, 0.1, 4e-6),
    Machine("TPU v2-8, float32", 1, 8, 22.5e12 / 6, 0.15, 2e-6),
    Machine("TPU v2-8, bfloat16", 1, 8, 22.5e12, 0.15, 2e-6),
    Machine("TPU v5e-8, float32", 1, 8, 197e12 / 6, 0.15, 2e-6),
    Machine("TPU v5e-8, bfloat16", 1, 8, 197e12, 0.15, 2e-6),
    Machine("eight TPU v5e-8, float32", 8, 8, 197e12 / 6, 0.15, 2e-6),
    Machine("eight TPU v5e-8, bfloat16", 8, 8, 197e12, 0.15, 2e-6),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    path = common.RESULTS / f"sweep_scaling_{args.preset}.json"
    if not path.exists():
        sys.exit(f"costs: run `benchmarks.sweep_scaling --preset {args.preset} --no-sweeps` first")
    here = json.loads(path.read_text())["whole_preset"][0]
    one_dataset = dataclasses.replace(preset, datasets=preset.datasets[:1], seeds=(0,))
    steps = [_step(job) for job in jobs.groups(runs.grid(one_dataset))]
    columns = ("training, h", "measuring, h")
    rows: list[common.Row] = [{"case": "here", **{name: here[name] for name in columns}}]
    of_model = {row["case"]: row for row in steps}
    rows += [_elsewhere(machine, preset, of_model, here["measuring, h"]) for machine in MACHINES]
    common.report("costs", rows, steps=steps)


def _step(job: jobs.Job) -> common.Row:
    """What a step of one run of a program is made of."""
    program = lower(job[0], steps=2).compile().as_text()  # two, or there would be no loop
    return {
        "case": job[0].model,
        "GFLOP per step": cost(job[0])[1] / 1e9,
        "kernels per step": _kernels(program),
    }


def _kernels(program: str) -> int:
    """Instructions that do work in the largest body of a loop."""
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    count, of_body = 0, [0]
    for line in program.splitlines():
        if header := re.match(r"%?([\w.-]+) \(", line):
            count, counted = 0, header.group(1) in bodies
        elif line.startswith("}"):
            of_body.append(count if counted else 0)
        elif re.search(r" (fusion|dot|custom-call|convolution|reduce|sort|scatter|rng\S*)\(", line):
            count += 1
    return max(of_body)


def _elsewhere(
    machine: Machine, preset: Preset, steps: dict[str, common.Row], measuring: float
) -> common.Row:
    busy, grid = [0.0] * machine.workers, runs.grid(preset)
    # Models that differ in a number train in the program of the first of them.
    first = {run.model: job[0].model for job in jobs.groups(grid) for run in job}
    for i, job in enumerate(jobs.split(grid, machine.workers)):
        step = steps[first[job[0].model]]
        compute = len(job) * step["GFLOP per step"] * 1e9
        compute /= machine.devices * machine.peak * machine.share
        launches = step["kernels per step"] * machine.launch
        busy[i % machine.workers] += preset.steps * max(compute, launches) / 3600
    return {
        "case": machine.name,
        "training, h": max(busy),
        "measuring, h": measuring / machine.workers,
    }


if __name__ == "__main__":
    main()
