"""Check a LightGBM model text before LightGBM's library reads it.

The library trusts its text: a child, column or set of categories that does not exist makes it read foreign memory, and
it follows a tree with a cycle forever. So a text from elsewhere is checked first. Its parameters can name files (of
data, of forced splits), which are never part of a package.

Source: LightGBM 4.7, `Tree::Tree(const char*)`, `GBDT::LoadModelFromString`, `Config`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from everloop.errors import CorruptionError, TrustError
from everloop.packages.formats.tree_structure import check_children

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

MOST_COLUMNS = 10_000_000

_FILES = frozenset(
    {
        *("config", "config_file", "data", "train", "train_data", "train_data_file", "data_filename", "valid", "test"),
        *("valid_data", "valid_data_file", "test_data", "test_data_file", "valid_filenames", "input_model"),
        *("model_input", "model_in", "output_model", "model_output", "model_out", "output_result", "predict_result"),
        *("prediction_result", "predict_name", "prediction_name", "pred_name", "name_pred", "convert_model"),
        *("convert_model_file", "forcedsplits_filename", "fs", "forced_splits_filename", "forced_splits_file"),
        *("forced_splits", "forcedbins_filename", "parser_config_file", "initscore_filename", "init_score_filename"),
        *("init_score_file", "init_score", "input_init_score", "valid_data_initscores", "valid_init_score"),
        *("valid_init_score_file", "valid_data_init_scores", "machine_list_filename", "machine_list_file"),
        *("machine_list", "mlist", "machines", "workers", "nodes"),
    }
)
"""Parameters of LightGBM, with their aliases, whose value is a file or the address of a machine."""
_INNER = ("left_child", "right_child", "split_feature", "decision_type")
_INNER_TOO = ("split_gain", "internal_value", "internal_weight", "internal_count")
_LEAVES_TOO = ("leaf_weight", "leaf_count")
_WHOLE = re.compile(r"-?[0-9]{1,10}+(?: ++-?[0-9]{1,10}+)*+")
_CLASSES = ("multiclass", "softmax", "multiclassova", "multiclass_ova", "ova", "ovr")


def check_text(text: bytes) -> None:
    """Check that a text names no files and that its trees are valid.

    Raises:
        TrustError: a parameter names a file or the address of a machine.
        CorruptionError: a tree is incomplete, has a cycle, or has a child outside of it.
    """
    head, _, rest = text.partition(b"\n\n")
    if not head.startswith(b"tree\n"):
        raise _broken("no header")
    header = _values(head.split(b"\n")[1:], "the header")
    try:
        columns = _digits(header["max_feature_idx"]) + 1
        outputs, per_iteration = _digits(header["num_class"]), _digits(header["num_tree_per_iteration"])
        sizes = [_digits(size) for size in header["tree_sizes"].split()]
    except (KeyError, ValueError) as error:
        raise _broken(f"a header in which a required number is missing ({error})") from error
    if not 1 <= columns <= MOST_COLUMNS:
        raise _broken(f"{columns} columns")
    for name in ("feature_names", "feature_infos"):
        if name in header and len(header[name].split()) != columns:
            raise _broken(f"{len(header[name].split())} entries in '{name}' for {columns} columns")
    if outputs < 1 or outputs != per_iteration or len(sizes) % per_iteration:
        raise _broken(f"{len(sizes)} trees in iterations of {per_iteration} for {outputs} outputs")
    _check_objective(header.get("objective", ""), outputs)
    at = 0
    for number, size in enumerate(sizes):
        chunk = rest[at : at + size]
        if size < 1 or len(chunk) != size:
            raise _broken("fewer trees than its header says")
        _check_tree(chunk, number, columns)
        at += size
    tail = rest[at:]
    if not tail.startswith(b"end of trees"):
        raise _broken("more trees than its header says")
    _check_parameters(tail)


def _check_objective(objective: str, outputs: int) -> None:
    name, *settings = objective.split() or [""]
    classes = [setting.removeprefix("num_class:") for setting in settings if setting.startswith("num_class:")]
    # The link function writes one output for each class of the objective.
    if (classes or name in _CLASSES) and classes != [str(outputs)]:
        raise _broken(f"an objective of {', '.join(classes) or 'no'} classes for {outputs} outputs")


def _check_parameters(tail: bytes) -> None:
    _, _, listed = tail.partition(b"\nparameters:\n")
    for line in listed.partition(b"\nend of parameters")[0].split(b"\n"):
        name, _, value = line.strip().removeprefix(b"[").removesuffix(b"]").partition(b":")
        parameter = name.strip().decode("utf-8", "replace")
        if parameter in _FILES and value.strip():
            raise TrustError(
                f"The LightGBM model's parameter '{parameter}' names '{value.strip().decode('utf-8', 'replace')}', "
                "which is outside of the model.",
                help="Delete the value in the model's text; predictions do not depend on it.",
            )


def _check_tree(chunk: bytes, number: int, columns: int) -> None:
    where = f"tree {number}"
    lines = chunk.rstrip(b"\n").split(b"\n")
    if lines[0] != b"Tree=%d" % number or b"" in lines:
        raise _broken(f"something else instead of {where}")
    tree = _values(lines[1:], where)
    try:
        leaves, sets = _digits(tree["num_leaves"]), _digits(tree["num_cat"])
    except (KeyError, ValueError) as error:
        raise _broken(f"{where} in which a required number is missing ({error})") from error
    if leaves < 1:
        raise _broken(f"{where} without leaves")
    _numbers(tree, "leaf_value", leaves, where)
    _numbers(tree, "threshold", leaves - 1, where)
    left, right, column, decision = (_integers(tree, name, leaves - 1, where) for name in _INNER)
    for name in (*_INNER_TOO, *_LEAVES_TOO):
        if tree.get(name):
            _numbers(tree, name, leaves - 1 if name in _INNER_TOO else leaves, where)
    if tree.get("is_linear", "0") not in ("", "0"):
        _check_linear(tree, leaves, columns, where)
    check_children(left, right, leaves, where)
    if len(column) and not 0 <= int(column.min()) <= int(column.max()) < columns:
        raise _broken(f"{where} with a split on a column that does not exist")
    _check_sets(tree, decision, sets, where)


def _check_sets(tree: dict[str, str], decision: Integers, sets: int, where: str) -> None:
    if len(decision) and not 0 <= int(decision.min()) <= int(decision.max()) < 12:
        raise _broken(f"{where} with an unknown kind of decision")
    if sets:
        borders = _integers(tree, "cat_boundaries", sets + 1, where)
        words = len(tree.get("cat_threshold", "").split())
        _integers(tree, "cat_threshold", words, where)
        if int(borders[0]) or (borders[1:] < borders[:-1]).any() or int(borders[-1]) != words:
            raise _broken(f"{where} with sets of categories that do not fit their boundaries")
    for kind, named in zip(decision.tolist(), tree.get("threshold", "").split(), strict=True):
        if kind & 1 and not (named.isascii() and named.isdigit() and len(named) < 10 and int(named) < sets):
            raise _broken(f"{where} with a set of categories that does not exist")


def _check_linear(tree: dict[str, str], leaves: int, columns: int, where: str) -> None:
    _numbers(tree, "leaf_const", leaves, where)
    counts = _integers(tree, "num_features", leaves, where)
    if int(counts.min()) < 0:
        raise _broken(f"{where} with a leaf of a negative number of columns")
    total = int(counts.sum())
    used = _integers(tree, "leaf_features", total, where)
    _numbers(tree, "leaf_coeff", total, where)
    if len(used) and not 0 <= int(used.min()) <= int(used.max()) < columns:
        raise _broken(f"{where} with a leaf that uses a column that does not exist")


def _values(lines: list[bytes], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("utf-8", "replace").partition("=")
        if name in found:
            raise _broken(f"the entry '{name}' twice in {where}")
        found[name] = value
    return found


def _digits(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"'{text[:20]}'")
    return int(text)


def _numbers(tree: dict[str, str], name: str, count: int, where: str) -> Any:
    import numpy as np

    parts = tree.get(name, "").split()
    if len(parts) != count:
        raise _broken(f"{len(parts)} numbers in '{name}' of {where}, which needs {count}")
    try:
        return np.array(parts, dtype=np.float64)
    except ValueError as error:
        raise _broken(f"a value in '{name}' of {where} that is not a number") from error


def _integers(tree: dict[str, str], name: str, count: int, where: str) -> Integers:
    """Read integers, written as LightGBM's own reader expects them: it stops at any other character."""
    import numpy as np

    text = tree.get(name, "").strip(" ")
    if text and not _WHOLE.fullmatch(text):
        raise _broken(f"a value in '{name}' of {where} that is not an integer")
    parts = text.split()
    if len(parts) != count:
        raise _broken(f"{len(parts)} numbers in '{name}' of {where}, which needs {count}")
    return np.array(parts, dtype=np.int64)


def _broken(what: str) -> CorruptionError:
    return CorruptionError(f"The LightGBM model is damaged: it has {what}.", help="Save it again where it was trained.")
