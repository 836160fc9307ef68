"""Size limits of a GraphQL document, checked before it is validated and executed.

Limits and messages are those of MLflow 3.17.2. Fragments count with their content, so that nothing can hide in them. In
addition to MLflow, the length of the text is limited, and all written fields and spreads count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

LONGEST = 20_000
"""Characters of a document; the longest that MLflow's page sends has about a thousand."""
ROOT_FIELDS = 10
ALIASES = 10
DEPTH = 10
SELECTIONS = 1000
_STEPS = 10_000

Fragments = Mapping[str, FragmentDefinitionNode]


def check_text(text: str) -> None:
    """Check the length of a document.

    Raises:
        GraphQLError: it is too long.
    """
    if len(text) > LONGEST:
        raise GraphQLError(f"Query exceeds maximum length of {LONGEST}")


def check_document(document: DocumentNode) -> None:
    """Check the depth and the number of fields of a document.

    Raises:
        GraphQLError: a limit is exceeded.
    """
    fragments = {one.name.value: one for one in document.definitions if isinstance(one, FragmentDefinitionNode)}
    operations = [one for one in document.definitions if isinstance(one, OperationDefinitionNode)]
    # Validation compares fields with one another, even in fragments that are not used.
    for one in fragments.values():
        _check_written(one.selection_set)
    root_fields = aliases = selections = steps = 0
    # Every operation counts, although only one is executed.
    waiting = [(one.selection_set, 1) for one in operations]
    while waiting:
        selection_set, depth = waiting.pop()
        if depth > DEPTH:
            raise GraphQLError(f"Query exceeds maximum depth of {DEPTH}")
        named = 0
        for node in _spread(selection_set, fragments):
            steps += 1
            if steps > _STEPS:
                raise _too_many_selections()
            if not isinstance(node, FieldNode):
                continue
            selections += 1
            if selections > SELECTIONS:
                raise _too_many_selections()
            root_fields += depth == 1
            named += node.alias is not None
            if node.selection_set is not None:
                waiting.append((node.selection_set, depth + 1))
        aliases = max(aliases, named)
    for found, most, what in ((root_fields, ROOT_FIELDS, "root fields"), (aliases, ALIASES, "aliases")):
        if found > most:
            raise GraphQLError(f"GraphQL queries should have at most {most} {what}, got {found} {what}.")


def _spread(selection_set: SelectionSetNode, fragments: Fragments) -> Iterator[object]:
    """Yield all nodes at one level, including the content of fragments, each fragment once."""
    waiting = [selection_set]
    seen: set[str] = set()
    while waiting:
        for node in waiting.pop().selections:
            yield node
            if isinstance(node, InlineFragmentNode):
                waiting.append(node.selection_set)
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in seen:
                seen.add(node.name.value)
                if node.name.value in fragments:
                    waiting.append(fragments[node.name.value].selection_set)


def _check_written(selection_set: SelectionSetNode) -> None:
    waiting, written = [selection_set], 0
    while waiting:
        for node in waiting.pop().selections:
            written += 1
            if written > SELECTIONS:
                raise _too_many_selections()
            if not isinstance(node, FragmentSpreadNode) and (below := getattr(node, "selection_set", None)):
                waiting.append(below)


def _too_many_selections() -> GraphQLError:
    return GraphQLError(f"Query exceeds maximum total selections of {SELECTIONS}")
