"""Whether an XGBoost model holds together, seen before XGBoost's library reads it.

The library believes a model's numbers: a child or a column that is not there reads memory that is not its own, a tree
that runs into itself is followed forever, and a tree of a class that there is not writes beside the answers. So the
model's document, binary (UBJSON) or text (JSON), is read here first.

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

    Whole = NDArray[np.int64]

DEEPEST = 64
"""Objects in objects."""
_NUMBERS = {b"i": "b", b"U": "B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
_SIZES = {b"i", b"U", b"I", b"l", b"L"}


def check_trees(blob: bytes) -> None:
    """Refuse a model whose trees lead out of themselves.

    Raises:
        CorruptionError: it is such a model, or not a model of XGBoost at all.
    """
    check_document(read_document(blob))


def read_document(blob: bytes) -> Any:
    """The document of a model, of either kind. Long rows of numbers come as arrays.

    Raises:
        CorruptionError: it is damaged, or has a name twice in one object.
    """
    if not blob.startswith(b"{"):
        raise _broken("no object")
    if blob[1:2] in (b'"', b"}", b" ", b"\n", b"\r", b"\t"):
        try:
            return json.loads(blob, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise _broken(f"something that is not JSON ({error})") from error
    reader = _Binary(blob)
    try:
        found = reader.value(reader.take(1), 0)
    except (struct.error, UnicodeDecodeError, ValueError, RecursionError, OverflowError) as error:
        raise _broken(f"something that cannot be read ({error})") from error
    return found


def check_document(document: Any) -> None:
    """Refuse the document of a model whose trees lead out of themselves."""
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
        trees, info = model["trees"], _whole(model["tree_info"])
        if len(trees) != _count(model["gbtree_model_param"]["num_trees"]) or len(info) != len(trees):
            raise _broken("another number of trees than it says")
        if weights is not None and len(weights) != len(trees):
            raise _broken("another number of weights than of trees")
        # A tree whose leaves hold an answer for each target counts for all of them.
        if len(info) and (int(info.min()) < 0 or int(info.max()) >= groups):
            raise _broken("a tree of a class that there is not")
        rounds = _whole(model.get("iteration_indptr", [0]))
        if (rounds[1:] < rounds[:-1]).any() or (
            len(rounds) and not 0 <= int(rounds[0]) <= int(rounds[-1]) <= len(trees)
        ):
            raise _broken("rounds that are not in order")
        _check_categories(model.get("cats"), columns)
        for number, tree in enumerate(trees):
            _check_tree(tree, f"tree {number}", columns, groups)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise _broken(f"not what a model needs ({type(error).__name__}: {error})") from error


def _check_tree(tree: Any, where: str, columns: int, groups: int) -> None:
    import numpy as np

    sizes = tree["tree_param"]
    nodes, width = _count(sizes["num_nodes"]), _count(sizes.get("size_leaf_vector", "0"))
    left, right = _whole(tree["left_children"]), _whole(tree["right_children"])
    asked, kinds = _whole(tree["split_indices"]), _whole(tree.get("split_type", [0] * nodes))
    listed = (left, right, asked, kinds, tree["split_conditions"], tree["default_left"])
    if nodes < 1 or any(len(one) != nodes for one in listed):
        raise _broken(f"{where} whose parts differ in length")
    if width > 1 and (width != groups or len(tree.get("leaf_weights", tree["base_weights"])) % width):
        raise _broken(f"{where} with leaves of {width} answers for {groups}")
    inner = left != -1
    if int(left.min()) < -1 or (right[inner] < 1).any():
        raise _broken(f"{where} with a node that leads out of it")
    if width > 1:
        # Where leaves are vectors, a leaf keeps in the other child the place of its own.
        places = right[~inner]
        if (
            len(places)
            and not 0 <= int(places.min()) <= int(places.max()) < len(tree.get("leaf_weights", left)) // width
        ):
            raise _broken(f"{where} with a leaf that is not there")
    elif (right[~inner] != -1).any():
        raise _broken(f"{where} with a node of one child")
    check_children(np.where(inner, left, -1), np.where(inner, right, -1), 1, where)
    # Nodes that were cut away stay in the list, and nothing leads to them.
    if inner.any() and not (int(asked[inner].min()) >= 0 and int(asked[inner].max()) < columns):
        raise _broken(f"{where} which asks for a column that no row has")
    _check_sets(tree, kinds, inner, nodes, where)


def _check_sets(tree: Any, kinds: Whole, inner: Whole, nodes: int, where: str) -> None:
    """Sets of categories: which nodes have one, where it starts, how long it is."""
    named, starts, sizes = (_whole(tree.get(f"categories_{name}", [])) for name in ("nodes", "segments", "sizes"))
    held = _whole(tree.get("categories", []))
    if not len(named) == len(starts) == len(sizes):
        raise _broken(f"{where} with sets of categories that differ in length")
    if len(held) and (int(held.min()) < 0 or int(held.max()) >= 2**24):
        raise _broken(f"{where} with a category that there cannot be")
    if len(named):
        if int(named.min()) < 0 or int(named.max()) >= nodes or (named[1:] <= named[:-1]).any():
            raise _broken(f"{where} with a set of categories for a node that is not there")
        if int(starts.min()) < 0 or int(sizes.min()) < 0 or (starts + sizes > len(held)).any():
            raise _broken(f"{where} with a set of categories that is not there")
    if not set((inner & (kinds == 1)).nonzero()[0].tolist()) <= set(named.tolist()):
        raise _broken(f"{where} with a node that lacks its categories")
    if ((kinds != 0) & (kinds != 1)).any():
        raise _broken(f"{where} with a kind of split that there is not")


def _check_categories(told: Any, columns: int) -> None:
    """The categories of the training table, by column, which the library holds new tables against."""
    if not told:
        return
    segments, order, listed = _whole(told["feature_segments"]), _whole(told["sorted_idx"]), told["enc"]
    if not len(segments) and not len(order) and not len(listed):
        return
    if (
        len(segments) != columns + 1
        or len(listed) != columns
        or int(segments[0])
        or (segments[1:] < segments[:-1]).any()
    ):
        raise _broken("categories of columns that there are not")
    counts = segments[1:] - segments[:-1]
    if int(segments[-1]) != len(order):
        raise _broken("categories that are not where it says")
    for place, (count, one) in enumerate(zip(counts.tolist(), listed, strict=True)):
        own = order[int(segments[place]) : int(segments[place + 1])]
        if len(own) and not 0 <= int(own.min()) <= int(own.max()) < count:
            raise _broken("an order of categories that there are not")
        if "offsets" in one:
            offsets = _whole(one["offsets"])
            if not len(offsets) and not count and not len(one["values"]):
                continue
            if len(offsets) != count + 1 or int(offsets[0]) or (offsets[1:] < offsets[:-1]).any():
                raise _broken("names of categories that are not where it says")
            if int(offsets[-1]) != len(one["values"]):
                raise _broken("names of categories that are cut")
        elif len(one["values"]) != count:
            raise _broken("another number of categories than it says")


class _Binary:
    """A document in UBJSON, as XGBoost writes it: counted arrays of one type, objects that end with a brace."""

    def __init__(self, blob: bytes) -> None:
        self._blob, self._at = blob, 0

    def take(self, size: int) -> bytes:
        if size < 0 or size > len(self._blob) - self._at:
            raise ValueError("it ends too soon")
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
        raise ValueError(f"the sign {marker!r} starts nothing")

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
            # The size of a name stands where the brace would.
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
                raise ValueError("an array of a type that no model has")
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
        raise ValueError("a name that stands twice in one object")
    return found


def _count(text: Any) -> int:
    spelled = str(text)
    if not (spelled.isascii() and spelled.isdigit() and len(spelled) < 10):
        raise ValueError(f"{spelled[:20]!r} is not a count")
    return int(spelled)


def _whole(values: Any) -> Whole:
    import numpy as np

    found = np.asarray(values)
    if not found.size:
        return np.zeros(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iub":
        raise ValueError("a row that is not of whole numbers")
    whole: Whole = found.astype(np.int64)
    return whole


def _broken(what: str) -> CorruptionError:
    return CorruptionError(f"The XGBoost model holds {what}.", help="Save it again where it was trained.")
