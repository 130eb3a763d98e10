"""Speed, as ratios against a peer or a floor that run beside it: `python -m benchmarks.NAME`."""
