"""What the README tells people to type works."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs():
    example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert "steps=500" in example
    quick = example.replace("steps=500", "steps=2").replace("width=0.5", "width=0.1")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", quick], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip("[]\n").split()) == 10
