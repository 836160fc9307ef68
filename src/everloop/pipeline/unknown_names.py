"""Help texts for unknown names."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest_names(name: str, known: Iterable[str], *, noun: str = "") -> str:
    """The help of an error about an unknown name: similar names, or if there are none, the first of all."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(item) for item in near)}?"
    if not names:
        return "There are none."
    subject = f"No {noun} has that name. " if noun else ""
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"{subject}There are: {shown}"
