"""Command lines: `python -m experiments.{sweep,train,analyze}`."""
