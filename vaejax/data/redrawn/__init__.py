"""The benchmarks drawn in JAX, one file each: factors, `draw` and `masks` of one factor vector."""
