"""A contract that is written again keeps the comments of its file."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from everloop.data import contract_from_toml, contract_to_toml
from everloop.data.contracts import contract_toml
from everloop.records import Contract

GENERATED = contract_toml._HEAD
HEAD = 'dataset = "d"\nid = "i"\nproject = "p"\ncreated_at = "2026-01-01T00:00:00+00:00"\n'
TEXT = f"""\
# Kept by the data team.

# See the wiki.
{HEAD}# after the head

# two rows
[[rules]] # at night
rule = "rows"
least = 2 # at least

# One row per flight.
[[rules]]
rule = "unique"
columns = [
  "a",    # the "number" # of the flight
  "b",
]

# Counts of seats.
[[columns]]  # from the airline
name = "a"
type = "int64"
# never more # than three
max = 3      # since 2020
# least = 0

[[columns]]
name = "b"
type = "string"
pattern = '#[a-z]+' # a "#" first

# Codes.
[columns.categories] # all of them
x = 1 # "x" is #1
"# y" = 2
# z = 3

# The end.
"""


def comments_of(text: str) -> list[str]:
    """Every line with a comment, except those of the generated head."""
    return [line for line in text.removeprefix(GENERATED).splitlines() if "#" in line]


def test_a_contract_that_has_not_changed_keeps_every_comment() -> None:
    held = contract_from_toml(TEXT)
    written = contract_to_toml(held, before=TEXT)
    assert contract_from_toml(written) == held
    assert comments_of(written) == comments_of(TEXT)
    assert contract_to_toml(held, before=written) == written
    assert contract_to_toml(held).count("#") < written.count("#")


def test_comments_follow_their_keys() -> None:
    held = contract_from_toml(TEXT)
    seats, codes = held.columns
    changed = replace(
        held,
        version=2,
        rules=held.rules[1:],
        columns=(
            {key: value for key, value in codes.items() if key != "pattern"},
            {"name": "new", "type": "int64"},
            {**seats, "max": 5},
        ),
    )
    written = contract_to_toml(changed, before=TEXT)
    assert contract_from_toml(written) == changed
    assert '\n\n# Counts of seats.\n[[columns]]  # from the airline\nname = "a"\n' in written
    assert "# never more # than three\nmax = 5      # since 2020\n# least = 0\n\n# The end.\n" in written
    assert '\n# Codes.\n[columns.categories] # all of them\nx = 1 # "x" is #1\n"# y" = 2\n# z = 3\n\n' in written
    assert '[\n  "a",    # the "number" # of the flight\n  "b",\n]' in written
    for gone in ("two rows", "at night", "at least", 'a "#" first'):
        assert gone not in written
    without = replace(changed, columns=changed.columns[1:], rules=())
    assert "Codes." not in contract_to_toml(without, before=written)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            'severities.max = "error" # dotted\nseverities.least = "error"\n',
            '[columns.severities]\nmax = "error" # dotted\n',
        ),
        ('# which\nseverities = { max = "error" } # inline\n', "# which\n[columns.severities] # inline\nmax"),
        ("[columns.severities] # table\nmax = 'error'\n", "[columns.severities] # table\nmax = 'error'\n"),
    ],
)
def test_each_spelling_of_a_table_keeps_its_comments(table: str, expected: str) -> None:
    text = f'{HEAD}[[columns]]\nname = "a"\ntype = "int64"\n{table}'
    assert expected in contract_to_toml(contract_from_toml(text), before=text)


def test_an_array_of_inline_tables_keeps_its_comments() -> None:
    rules = "# Rules.\nrules = [{ rule = 'rows', least = 1 }, { rule = 'rows', least = 2 }] # both\n"
    text = f'{HEAD}{rules}[[columns]]\nname = "a"\ntype = "int64"\n'
    assert "\n\n# Rules.\n# both\n[[rules]]\nrule" in contract_to_toml(contract_from_toml(text), before=text)


def test_comments_that_cannot_be_read_do_not_stop_anything(caplog: pytest.LogCaptureFixture) -> None:
    held = contract_from_toml(TEXT)
    with caplog.at_level(logging.WARNING, "everloop.data"):
        assert contract_to_toml(held, before="a = [") == contract_to_toml(held)
    assert "were not kept" in caplog.text


@pytest.mark.slow
@given(st.data())
@settings(max_examples=50, deadline=None)
def test_comments_anywhere_are_kept(data: Any) -> None:
    held: Contract = contract_from_toml(TEXT)
    lines = contract_to_toml(held).splitlines()
    number, text = 0, []
    for line in lines:
        for _ in range(data.draw(st.integers(0, 2))):
            text.append(data.draw(st.sampled_from(["", f"#= {number} '\"[a]"])))
            number += 1
        beside = "" if not line or line.startswith("#") else data.draw(st.sampled_from(["", f'  #= {number} = "x"']))
        text.append(line + beside)
        number += 1
    edited = "\n".join(text)
    written = contract_to_toml(held, before=edited)
    assert contract_from_toml(written) == held

    def own(text: str) -> list[str]:
        return [line[line.index("#=") :] for line in text.splitlines() if "#=" in line]

    assert own(written) == own(edited)
    assert contract_to_toml(held, before=written) == written
