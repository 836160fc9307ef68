"""Whether the nodes of a decision tree lead only to nodes of the same tree, and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import CorruptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Whole = NDArray[np.int64]

DEEPEST = 10_000
"""Most levels of a tree. Libraries explain predictions by recursion, and their stack is limited."""


def check_children(left: Whole, right: Whole, leaves: int, where: str) -> None:
    """Refuse a tree whose nodes lead out of it, or from which some way does not end at a leaf.

    Args:
        left, right: the children of each inner node: an inner node by its number, a leaf by -1 - its number.

    Raises:
        CorruptionError: it is such a tree.
    """
    import numpy as np

    children = np.concatenate([left, right])
    if not len(children):
        return
    if int(children.max()) >= len(left) or int(children.min()) < -leaves:
        raise broken_model(f"{where} with a node that leads out of it")
    inner = children[children >= 0]
    # Each node has one parent and the first has none, so no way from the first leads back.
    if len(inner) and (int(inner.min()) < 1 or len(np.unique(inner)) != len(inner)):
        raise broken_model(f"{where} which runs into itself")
    level = np.zeros(1, dtype=np.int64)
    for _ in range(DEEPEST):
        level = np.concatenate([left[level], right[level]])
        level = level[level >= 0]
        if not len(level):
            return
    raise broken_model(f"{where} of more than {DEEPEST} levels")


def broken_model(what: str) -> CorruptionError:
    """The error for a model that holds `what`."""
    return CorruptionError(f"The model holds {what}.", help="Build it again from the estimator that was fitted.")
