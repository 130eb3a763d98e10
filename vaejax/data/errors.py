"""The error raised for anything wrong with a dataset, its files or its name."""

from __future__ import annotations


class DataError(ValueError):
    """A dataset that is unknown, missing, damaged or not in the published format.

    The message is one line: what is wrong, and what would be right.
    """
