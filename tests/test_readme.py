"""What the README tells people to type works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(example):
    command = [sys.executable, "-W", "error", "-c", example]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles in less time
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_example_runs_and_goes_on_under_a_mesh():
    example = EXAMPLES[0]
    assert "steps=500" in example
    example += next(example for example in EXAMPLES if "devices.mesh" in example)
    for at_length, briefly in (("500", "2"), ("1000", "4"), ("width=0.5", "width=0.1")):
        example = example.replace(at_length, briefly)
    printed = run(f"{example}\nprint(states.step)")
    *effects, steps = printed.splitlines()
    assert len(" ".join(effects).strip("[]").split()) == 10
    assert steps == "[4 4 4]"


def test_a_model_of_ones_own_is_analysed_in_under_20_lines():
    example = next(example for example in EXAMPLES if "class MyVAE" in example)
    assert len([line for line in example.splitlines() if line]) < 20
    sites, fraction, *_, best = run(example).splitlines()
    assert sites == "dict_keys(['encoder', 'code', 'decoder', 'pixels'])"
    assert fraction.startswith("Estimate(value=Array(")
    assert len(best.strip("[]").split()) == 5


def test_the_metrics_example_finds_the_latent_of_each_factor():
    example = next(example for example in EXAMPLES if "metrics.dci" in example)
    reason, *rows = run(example).splitlines()
    assert reason == "dead latents: [2]"
    # Each latent is all of its own factor, but for the noise that trees find about orientation.
    importances = np.array([[float(x) for x in row.strip("[] ").split()] for row in rows])
    np.testing.assert_array_equal(np.delete(importances[[0, 1, 3, 4]], 2, axis=1), np.eye(4))


def test_a_world_has_counterfactuals_and_a_truth():
    example = next(example for example in EXAMPLES if "dsprites@fork" in example)
    assert run(example).split() == ["3", "-0.3"]


def test_circuits_of_that_model_are_found_and_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = next(example for example in EXAMPLES if "class MyVAE" in example)
    start = example[: example.index("print(")]
    example = next(example for example in EXAMPLES if "find_circuits" in example)
    *labels, circuit, overlap = run(f"{start}\n{example}").splitlines()
    assert len(" ".join(labels).strip("[]").split()) == 64
    assert circuit.startswith("{'code': array([")
    assert overlap.startswith("Overlap(jaccard=")
    assert (tmp_path / "circuit.dot").read_text().startswith("digraph")
