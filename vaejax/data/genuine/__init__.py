"""The published images, one file for each benchmark: where to get them, `find` and `load`."""
