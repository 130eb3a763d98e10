"""How the estimators of other libraries are called."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """Within it nothing warns, and each product of matrices takes one thread.

    What an estimator warns of (that it stopped before it converged, that classes are rare) the
    references accept, and so do we. The matrices are small: on cores that others use too, threads
    wait for one another for 25 times as long as they compute.
    """
    import threadpoolctl

    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        warnings.simplefilter("ignore")
        yield
