"""Check an XGBoost model before XGBoost's library reads it.

The library trusts a model's numbers: a child or column that does not exist makes it read foreign memory, a tree with a
cycle is followed forever, and a tree of a class that does not exist writes outside of the results. So the model's
document, binary (UBJSON) or text (JSON), is checked first.

Sources: XGBoost 3.2, "Introduction to Model IO", `doc/model.schema`; "Universal Binary JSON", draft 12.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError
from everloop.packages.formats.tree_structure import check_children

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

DEEPEST = 64
"""Levels of nested objects."""
_NUMBERS = {b"i": "b", b"U": "B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
_SIZES = {b"i", b"U", b"I", b"l", b"L"}


def check_trees(blob: bytes) -> None:
    """Check the trees of a model.

    Raises:
        CorruptionError: a tree is invalid, or this is not an XGBoost model.
    """
    check_document(read_document(blob))


def read_document(blob: bytes) -> Any:
    """Decode the document of a model, binary or text. In a binary one, long lists of numbers become arrays.

    Raises:
        CorruptionError: it is damaged, or has a name twice in one object.
    """
    if not blob.startswith(b"{"):
        raise _broken("no object")
    if blob[1:2] in (b'"', b"}", b" ", b"\n", b"\r", b"\t"):
        try:
            return json.loads(blob, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise _broken(f"invalid JSON ({error})") from error
    reader = _Binary(blob)
    try:
        found = reader.value(reader.take(1), 0)
    except (struct.error, UnicodeDecodeError, ValueError, RecursionError, OverflowError) as error:
        raise _broken(f"invalid UBJSON ({error})") from error
    return found


def check_document(document: Any) -> None:
    """Check the trees in the document of a model; raises what `check_trees` raises."""
    try:
        learner = document["learner"]
        sizes = learner["learner_model_param"]
        columns = _count(sizes["num_feature"])
        groups = max(1, _count(sizes.get("num_class", "0"))) * max(1, _count(sizes.get("num_target", "1")))
        booster = learner["gradient_booster"]
        weights = booster.get("weight_drop")
        booster = booster.get("gbtree", booster)
        model = booster["model"]
        if booster.get("name") == "gblinear" or "trees" not in model:
            if len(model["weights"]) != (columns + 1) * groups:
                raise _broken(f"{len(model['weights'])} weights for {columns} columns")
            return
        trees, info = model["trees"], _integers(model["tree_info"])
        if len(trees) != _count(model["gbtree_model_param"]["num_trees"]) or len(info) != len(trees):
            raise _broken("a wrong number of trees")
        if weights is not None and len(weights) != len(trees):
            raise _broken(f"{len(weights)} weights for {len(trees)} trees")
        # A tree whose leaves are vectors belongs to all outputs.
        if len(info) and (int(info.min()) < 0 or int(info.max()) >= groups):
            raise _broken("a tree of a class that does not exist")
        iterations = _integers(model.get("iteration_indptr", [0]))
        if (iterations[1:] < iterations[:-1]).any() or (
            len(iterations) and not 0 <= int(iterations[0]) <= int(iterations[-1]) <= len(trees)
        ):
            raise _broken("iterations that are not in order")
        _check_categories(model.get("cats"), columns)
        for number, tree in enumerate(trees):
            _check_tree(tree, f"tree {number}", columns, groups)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise _broken(f"missing or invalid entries ({type(error).__name__}: {error})") from error


def _check_tree(tree: Any, where: str, columns: int, groups: int) -> None:
    import numpy as np

    sizes = tree["tree_param"]
    nodes, width = _count(sizes["num_nodes"]), _count(sizes.get("size_leaf_vector", "0"))
    left, right = _integers(tree["left_children"]), _integers(tree["right_children"])
    columns_used, kinds = _integers(tree["split_indices"]), _integers(tree.get("split_type", [0] * nodes))
    listed = (left, right, columns_used, kinds, tree["split_conditions"], tree["default_left"])
    if nodes < 1 or any(len(one) != nodes for one in listed):
        raise _broken(f"{where} whose parts differ in length")
    if width > 1 and (width != groups or len(tree.get("leaf_weights", tree["base_weights"])) % width):
        raise _broken(f"{where} with leaves of {width} outputs for {groups}")
    inner = left != -1
    if int(left.min()) < -1 or (right[inner] < 1).any():
        raise _broken(f"{where} with a node whose child is outside of it")
    if width > 1:
        # If leaves are vectors, the right child of a leaf is the index of its vector.
        vectors = right[~inner]
        if (
            len(vectors)
            and not 0 <= int(vectors.min()) <= int(vectors.max()) < len(tree.get("leaf_weights", left)) // width
        ):
            raise _broken(f"{where} with a leaf that does not exist")
    elif (right[~inner] != -1).any():
        raise _broken(f"{where} with a node of one child")
    check_children(np.where(inner, left, -1), np.where(inner, right, -1), 1, where)
    # Pruned nodes stay in the list, but are not reachable.
    if inner.any() and not (int(columns_used[inner].min()) >= 0 and int(columns_used[inner].max()) < columns):
        raise _broken(f"{where} with a split on a column that does not exist")
    _check_sets(tree, kinds, inner, nodes, where)


def _check_sets(tree: Any, kinds: Integers, inner: Integers, nodes: int, where: str) -> None:
    """Check the sets of categories: the nodes that have one, and its start and length."""
    named, starts, sizes = (_integers(tree.get(f"categories_{name}", [])) for name in ("nodes", "segments", "sizes"))
    categories = _integers(tree.get("categories", []))
    if not len(named) == len(starts) == len(sizes):
        raise _broken(f"{where} with sets of categories that differ in length")
    if len(categories) and (int(categories.min()) < 0 or int(categories.max()) >= 2**24):
        raise _broken(f"{where} with an impossible category")
    if len(named):
        if int(named.min()) < 0 or int(named.max()) >= nodes or (named[1:] <= named[:-1]).any():
            raise _broken(f"{where} with a set of categories for a node that does not exist")
        if int(starts.min()) < 0 or int(sizes.min()) < 0 or (starts + sizes > len(categories)).any():
            raise _broken(f"{where} with a set of categories that does not exist")
    if not set((inner & (kinds == 1)).nonzero()[0].tolist()) <= set(named.tolist()):
        raise _broken(f"{where} with a node that lacks its categories")
    if ((kinds != 0) & (kinds != 1)).any():
        raise _broken(f"{where} with an unknown kind of split")


def _check_categories(trained: Any, columns: int) -> None:
    """Check the categories of the training table, by column, with which the library compares new tables."""
    if not trained:
        return
    segments, order, listed = _integers(trained["feature_segments"]), _integers(trained["sorted_idx"]), trained["enc"]
    if not len(segments) and not len(order) and not len(listed):
        return
    if (
        len(segments) != columns + 1
        or len(listed) != columns
        or int(segments[0])
        or (segments[1:] < segments[:-1]).any()
    ):
        raise _broken("categories of columns that do not exist")
    counts = segments[1:] - segments[:-1]
    if int(segments[-1]) != len(order):
        raise _broken("a wrong number of sorted categories")
    for index, (count, encoded) in enumerate(zip(counts.tolist(), listed, strict=True)):
        column_order = order[int(segments[index]) : int(segments[index + 1])]
        if len(column_order) and not 0 <= int(column_order.min()) <= int(column_order.max()) < count:
            raise _broken("an order of categories that do not exist")
        if "offsets" in encoded:
            offsets = _integers(encoded["offsets"])
            if not len(offsets) and not count and not len(encoded["values"]):
                continue
            if len(offsets) != count + 1 or int(offsets[0]) or (offsets[1:] < offsets[:-1]).any():
                raise _broken("names of categories at invalid offsets")
            if int(offsets[-1]) != len(encoded["values"]):
                raise _broken("names of categories that are cut off")
        elif len(encoded["values"]) != count:
            raise _broken("a wrong number of categories")


class _Binary:
    """Reads UBJSON as XGBoost writes it: counted arrays of one type, objects that end with a brace."""

    def __init__(self, blob: bytes) -> None:
        self._blob, self._at = blob, 0

    def take(self, size: int) -> bytes:
        if size < 0 or size > len(self._blob) - self._at:
            raise ValueError("it is cut off")
        self._at += size
        return self._blob[self._at - size : self._at]

    def value(self, marker: bytes, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"objects nested deeper than {DEEPEST}")
        if marker in _NUMBERS:
            spelled = _NUMBERS[marker]
            return struct.unpack(spelled, self.take(struct.calcsize(spelled)))[0]
        if marker == b"{":
            return self._object(depth)
        if marker == b"[":
            return self._array(depth)
        if marker == b"S":
            return self.take(self._size()).decode("utf-8", "surrogateescape")
        if marker == b"C":
            return self.take(1).decode("latin-1")
        if marker in (b"Z", b"T", b"F"):
            return {b"Z": None, b"T": True, b"F": False}[marker]
        raise ValueError(f"unknown type marker {marker!r}")

    def _size(self) -> int:
        marker = self.take(1)
        if marker not in _SIZES:
            raise ValueError(f"a size cannot start with {marker!r}")
        size = int(self.value(marker, 0))
        if size < 0:
            raise ValueError(f"a size of {size}")
        return size

    def _object(self, depth: int) -> dict[str, Any]:
        found = []
        while self.take(1) != b"}":
            # It was the first byte of the size of a name.
            self._at -= 1
            name = self.take(self._size()).decode("utf-8", "surrogateescape")
            found.append((name, self.value(self.take(1), depth + 1)))
        return _once(found)

    def _array(self, depth: int) -> Any:
        import numpy as np

        marker = self.take(1)
        if marker == b"$":
            kind = self.take(1)
            if kind not in _NUMBERS or self.take(1) != b"#":
                raise ValueError("an array of an unexpected type")
            spelled = np.dtype(_NUMBERS[kind])
            return np.frombuffer(self.take(self._size() * spelled.itemsize), dtype=spelled)
        found = []
        if marker == b"#":
            for _ in range(self._size()):
                found.append(self.value(self.take(1), depth + 1))
            return found
        while marker != b"]":
            found.append(self.value(marker, depth + 1))
            marker = self.take(1)
        return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is in one object twice")
    return found


def _count(text: Any) -> int:
    spelled = str(text)
    if not (spelled.isascii() and spelled.isdigit() and len(spelled) < 10):
        raise ValueError(f"{spelled[:20]!r} is not a count")
    return int(spelled)


def _integers(values: Any) -> Integers:
    import numpy as np

    found = np.asarray(values)
    if not found.size:
        return np.zeros(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iub":
        raise ValueError("a list that is not of integers")
    integers: Integers = found.astype(np.int64)
    return integers


def _broken(what: str) -> CorruptionError:
    return CorruptionError(f"The XGBoost model is damaged: it has {what}.", help="Save it again where it was trained.")
