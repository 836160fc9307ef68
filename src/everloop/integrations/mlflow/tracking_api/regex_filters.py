"""Regular expressions that clients send in filters (RLIKE).

They run in Rust's `regex` engine, which Polars includes. It takes time linear in the text for every pattern, and so has
no backreferences or look-around. Python's own engine takes exponential time on some patterns, and holds the GIL
meanwhile.
"""

from __future__ import annotations

from everloop.integrations.mlflow.tracking_api.codec import MlflowError

LONGEST_PATTERN = 500
LONGEST_TEXT = 10_000
"""Only the beginning of a longer text is searched."""


def check_pattern(pattern: str) -> None:
    """Check a regular expression.

    Raises:
        MlflowError: it is malformed, too long, or needs too much memory.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise MlflowError(f"Invalid pattern: it has {len(pattern)} characters, at most {LONGEST_PATTERN} are allowed.")
    matches(pattern, "")


def matches(pattern: str, text: str) -> bool:
    """Whether a regular expression matches anywhere in a text.

    Raises:
        MlflowError: the regular expression is malformed.
    """
    return _contains(pattern, text[:LONGEST_TEXT])


def _contains(pattern: str, text: str) -> bool:
    # Polars takes a fifth of a second to import, and few filters have patterns.
    import polars as pl

    try:
        return bool(pl.Series([text]).str.contains(pattern)[0])
    except (pl.exceptions.PolarsError, UnicodeEncodeError) as error:
        raise MlflowError(f"Invalid regular expression '{pattern[:200]}': {str(error)[:300]}") from None
