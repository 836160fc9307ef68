"""Regular expressions that clients send: RLIKE.

They run in an engine that takes time in proportion to the text, whatever the pattern (Rust's `regex`, which Polars
brings along): it has no backreferences and no look-around. Python's own takes exponential time on some patterns, and
nothing else runs meanwhile.
"""

from __future__ import annotations

from everloop.integrations.mlflow.tracking_api.codec import MlflowError

LONGEST_PATTERN = 500
LONGEST_TEXT = 10_000
"""Of a longer text only the beginning is looked at."""


def check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression.

    Raises:
        MlflowError: it is none, is too long, or needs too much memory.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise MlflowError(f"Invalid pattern: it has {len(pattern)} characters, at most {LONGEST_PATTERN} are read.")
    fits(pattern, "")


def fits(pattern: str, text: str) -> bool:
    """Whether a regular expression fits somewhere in a text.

    Raises:
        MlflowError: it is no regular expression.
    """
    return _contains(pattern, text[:LONGEST_TEXT])


def _contains(pattern: str, text: str) -> bool:
    # Polars takes a fifth of a second to import, and few ask for patterns.
    import polars as pl

    try:
        return bool(pl.Series([text]).str.contains(pattern)[0])
    except (pl.exceptions.PolarsError, UnicodeEncodeError) as error:
        raise MlflowError(f"Invalid regular expression '{pattern[:200]}': {str(error)[:300]}") from None
