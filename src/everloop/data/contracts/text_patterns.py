"""Infer a regular expression from texts, such as `^[A-Z]{2}-[0-9]+$` from `AA-17`, `UA-1545`, …

Runs of capital letters, small letters and digits become character classes, with a length if it never varies. All other
characters are literal. Texts with more than `MAX_SHAPES` different shapes have no useful pattern.
"""

from __future__ import annotations

import polars as pl

LEAST_TEXTS = 50
MAX_SHAPES = 3
_MAX_RUNS = 15
_SPECIAL = frozenset(r"\.^$*+?()[]{}|")
_CLASSES = {"A": "[A-Z]", "a": "[a-z]", "0": "[0-9]"}


def infer_pattern(values: pl.Series) -> str | None:
    """The pattern that every text of a column matches; None if there are too few texts or too many shapes."""
    texts = values.drop_nulls().unique()
    if len(texts) < LEAST_TEXTS:
        return None
    shape = pl.col("text").str.replace_all("[A-Z]+", "A").str.replace_all("[a-z]+", "a").str.replace_all("[0-9]+", "0")
    shaped = pl.DataFrame({"text": texts}).with_columns(shape=shape)
    shapes = sorted(shaped["shape"].unique().to_list())
    if len(shapes) > MAX_SHAPES or any(not each or len(each) > _MAX_RUNS for each in shapes):
        return None
    found = [_of_shape(each, shaped.filter(pl.col("shape") == each)["text"]) for each in shapes]
    return f"^{found[0]}$" if len(found) == 1 else f"^(?:{'|'.join(found)})$"


def _of_shape(shape: str, texts: pl.Series) -> str:
    runs = "".join(f"({_CLASSES[each]}+)" if each in _CLASSES else _literal(each) for each in shape)
    lengths = [
        texts.str.extract(f"(?s)^{runs}$", group).str.len_chars()
        for group in range(1, sum(each in _CLASSES for each in shape) + 1)
    ]
    parts = []
    for each in shape:
        if each not in _CLASSES:
            parts.append(_literal(each))
            continue
        length = lengths.pop(0)
        fixed = "" if length[0] == 1 else f"{{{length[0]}}}"
        parts.append(_CLASSES[each] + (fixed if length.n_unique() == 1 else "+"))
    return "".join(parts)


def _literal(letter: str) -> str:
    # Escape only special characters, because people read the pattern.
    return f"\\{letter}" if letter in _SPECIAL else letter
