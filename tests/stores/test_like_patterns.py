"""LIKE in Python: the same results as SQLite's, in linear time."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings, strategies as st

from everloop.stores.records.expressions import Compare, matches
from everloop.stores.records.like_patterns import SHORT, _automaton, is_like

TEXTS = st.text(alphabet="aAbß\n", max_size=12)
PATTERNS = st.text(alphabet="aAb%_%_", max_size=12)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(TEXTS, PATTERNS)
def test_results_equal_those_of_sqlite(text, pattern):
    said = bool(sqlite3.connect(":memory:").execute("SELECT ? LIKE ?", (text, pattern)).fetchone()[0])
    assert is_like(text, pattern, any_case=True) is said
    folded = (text.replace("A", "a"), pattern.replace("A", "a"))
    assert _automaton(folded[1]).accepts(folded[0]) is said
    assert is_like(*folded) is said


@pytest.mark.parametrize("length", [1, SHORT - 1, SHORT, SHORT + 1, 500])
def test_a_piece_of_any_length(length):
    piece = "_" * (length - 1) + "b"
    assert is_like("a" * 600 + "b" + "a" * 600, f"%{piece}%")
    assert is_like("a" * 600 + "b", f"%{piece}")
    assert not is_like("a" * 1200, f"%{piece}%")
    assert is_like("a" * (length - 1) + "b", piece)
    assert not is_like("a" * length + "b", piece)


class Counted(str):
    """A text that counts the characters that are read one by one."""

    __slots__ = ("read",)

    def __iter__(self):
        self.read = 0
        for sign in str(self):
            self.read += 1
            yield sign


@pytest.mark.parametrize("pattern", ["%" + "a_" * 300 + "b%", "%a" * 400 + "_" * 70 + "b", "_%" * 400 + "_" * 70 + "b"])
def test_the_automaton_reads_each_character_once(pattern):
    text = Counted("a" * 10_000)
    assert not is_like(text, pattern)
    assert text.read <= 10_000


def test_a_chain_of_percent_signs_is_not_tried_in_every_way():
    """A regular expression with `.*` would need more than the fourth power of the text's length here."""
    text = "a" * 100_000
    for pattern in ("%a" * 300 + "%b", "%a_" * 300 + "%b", "%_a%" * 200 + "b", "%" + "a%" * 400 + "_b"):
        for op in ("like", "ilike"):
            assert not matches(Compare(("name",), op, pattern), lambda _: (None, text))
            assert matches(Compare(("name",), f"not {op}", pattern), lambda _: (None, text))


def test_a_store_matches_long_pieces_the_same_way(store):
    from everloop.records import Run
    from everloop.stores.records.expressions import Compare
    from everloop.stores.records.sqlite import LONGEST_PIECE, SqlitePatterns

    for name in ("a" * 300 + "b", "A" * 300 + "b", "a" * 301):
        store.records.put(store.new(Run, name=name, started_at=store.now()))
    for length in (LONGEST_PIECE - 1, LONGEST_PIECE, LONGEST_PIECE + 1, 200):
        pattern = f"%{'a_' * (length // 2)}b%"
        for op, count in (("like", 1), ("ilike", 2), ("not like", 2), ("not ilike", 1)):
            assert store.records.count(Run, Compare(("name",), op, pattern)) == count, (length, op)
    assert "everloop_like" in SqlitePatterns().like("x", "%" + "_" * (LONGEST_PIECE + 1), any_case=True).text
    assert "everloop_like" not in SqlitePatterns().like("x", "%" + "a" * 900 + "%_b", any_case=True).text
