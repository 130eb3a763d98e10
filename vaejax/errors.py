"""One way to say that a name is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line that names what was wrong, the nearest valid name, and all of them.

    Example:
      >>> print(unknown_name("model", "beta_vea", ["vae", "beta_vae"]))
      unknown model 'beta_vea': did you mean 'beta_vae'? (one of vae, beta_vae)
    """
    known = list(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}:{hint} (one of {', '.join(known)})"
