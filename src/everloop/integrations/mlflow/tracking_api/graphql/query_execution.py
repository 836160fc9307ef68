"""Answers a GraphQL query: each of its root fields asks one route of the protocol, by whose role and checks it stands.

What MLflow answers with 500 or drops the connection at is here an error in the list, with status 200.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from graphql import (
    ExecutionResult,
    GraphQLEnumType,
    GraphQLError,
    GraphQLList,
    GraphQLNonNull,
    GraphQLResolveInfo,
    GraphQLScalarType,
    GraphQLSchema,
    execute,
    parse,
    validate,
)
from litestar.exceptions import HTTPException

from everloop.errors import EverloopError
from everloop.integrations.mlflow.tracking_api import (
    artifact_routes,
    experiment_routes,
    metric_history_routes,
    model_version_routes,
    run_routes,
    run_search_routes,
)
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, mistyped, translated
from everloop.integrations.mlflow.tracking_api.graphql.document_limits import check_document, check_text
from everloop.integrations.mlflow.tracking_api.graphql.mlflow_schema import schema
from everloop.integrations.mlflow.tracking_api.handler_context import Handler, HandlerRoute
from everloop.integrations.mlflow.tracking_api.web_page import dataset_summaries
from everloop.server.request_values import check_json

LARGEST_BODY = 1 << 20
MOST_DEPTH = 500
"""Levels of a request's variables."""
MOST_VALUES = 300_000
"""So many values a query is answered with; a search's own limits count rows, which aliases multiply."""
_RUNS_PER_SEARCH = 1000
_MOST_VERSIONS = 200_000

AskRoute = Callable[[HandlerRoute, Fields], Mapping[str, Any]]
"""Asks a route in the name of who sent the query, from whichever thread, and answers as the route would."""

_log = logging.getLogger("everloop.server")
_ROUTES: Mapping[Handler | None, HandlerRoute] = {
    route.handler: route
    for module in (
        artifact_routes,
        dataset_summaries,
        experiment_routes,
        metric_history_routes,
        run_search_routes,
        run_routes,
        model_version_routes,
    )
    for route in module.ROUTES
}
ROOTS: Mapping[str, HandlerRoute] = {
    "mlflowGetExperiment": _ROUTES[experiment_routes.get_experiment],
    "mlflowGetMetricHistoryBulkInterval": _ROUTES[metric_history_routes.get_history_sampled],
    "mlflowGetRun": _ROUTES[run_routes.get_run],
    "mlflowListArtifacts": _ROUTES[artifact_routes.list_artifacts],
    "mlflowSearchDatasets": _ROUTES[dataset_summaries.search_datasets],
    "mlflowSearchModelVersions": _ROUTES[model_version_routes.search_model_versions],
    "mlflowSearchRuns": _ROUTES[run_search_routes.search_runs],
}
"""The route behind each root field that reads."""


class Exhausted(BaseException):
    """Ends an execution at once. Any `Exception` would become the error of one field, and the rest go on."""


class Query:
    """One query on its way: who answers it, what was found already, and how many values it has been given."""

    def __init__(self, ask: AskRoute) -> None:
        self.ask = ask
        self.values = 0
        self._experiments: dict[str, Any] = {}
        self._versions: dict[str, list[Any]] = {}
        self._runs: dict[str, None] = {}

    def root(self, name: str, said: Mapping[str, Any] | None) -> Mapping[str, Any]:
        check_json(said or {})
        answer = self.ask(ROOTS[name], Fields(said or {}))
        for run in (*answer.get("runs", ()), *([answer["run"]] if "run" in answer else [])):
            self._runs[run["info"]["run_id"]] = None
        return answer

    def experiment_of(self, run: Mapping[str, Any]) -> Any:
        number = run["info"]["experiment_id"]
        if number not in self._experiments:
            answer = self.ask(ROOTS["mlflowGetExperiment"], Fields({"experiment_id": number}))
            self._experiments[number] = answer["experiment"]
        return self._experiments[number]

    def versions_of(self, run: Mapping[str, Any]) -> list[Any]:
        """The versions that come from a run; they are looked up for all runs of the answer together."""
        name = run["info"]["run_id"]
        if name not in self._versions:
            wanted = [one for one in self._runs if one not in self._versions]
            for start in range(0, len(wanted), _RUNS_PER_SEARCH):
                self._look_up(wanted[start : start + _RUNS_PER_SEARCH])
        return self._versions.get(name, [])

    def _look_up(self, run_ids: Sequence[str]) -> None:
        named = ", ".join(f"'{one}'" for one in run_ids)
        asked = Fields({"filter": f"run_id IN ({named})", "max_results": _MOST_VERSIONS})
        self._versions.update((one, []) for one in run_ids)
        for version in self.ask(ROOTS["mlflowSearchModelVersions"], asked).get("model_versions", ()):
            self._versions[version["run_id"]].append(version)


def answer_query(fields: Fields, ask: AskRoute) -> dict[str, Any]:
    """Answer the `query` of a request, with its `variables` and `operationName`.

    Runs in a thread: reading a query takes milliseconds, answering it may take seconds.

    Raises:
        MlflowError: the request is none: it has no query, or something else where variables belong.
    """
    text = fields.text("query")
    variables = fields.raw("variables")
    if variables is not None and not isinstance(variables, dict):
        raise mistyped("variables", variables)
    operation = fields.optional_text("operationName")
    try:
        result = _executed(text, variables, operation or None, Query(ask))
    except GraphQLError as error:
        result = ExecutionResult(None, [error])
    except RecursionError:
        result = ExecutionResult(None, [GraphQLError("The query is nested too deeply.")])
    except Exhausted:
        result = ExecutionResult(None, [GraphQLError(f"The answer would have more than {MOST_VALUES} values.")])
    return {"data": result.data, "errors": [_message(error) for error in result.errors] if result.errors else None}


def _executed(text: str, variables: dict[str, Any] | None, operation: str | None, query: Query) -> ExecutionResult:
    check_text(text)
    document = parse(text)
    check_document(document)
    known = _schema()
    if wrong := validate(known, document):
        return ExecutionResult(None, wrong)
    result = execute(
        known,
        document,
        context_value=query,
        variable_values=variables,
        operation_name=operation,
        field_resolver=_value,
    )
    if not isinstance(result, ExecutionResult):
        raise MlflowError("The query cannot be answered.", "INTERNAL_ERROR")
    return result


@cache
def _schema() -> GraphQLSchema:
    """The schema with a resolver at each field that is not just a value of its object."""
    known = schema()
    for root in (known.query_type, known.mutation_type):
        for name, field in root.fields.items() if root is not None else ():
            field.resolve = _root if name in ROOTS else _echo
    run: Any = known.type_map["MlflowRunExtension"]
    run.fields["experiment"].resolve = lambda one, info: info.context.experiment_of(one)
    run.fields["modelVersions"].resolve = lambda one, info: info.context.versions_of(one)
    return known


def _root(_: Any, info: GraphQLResolveInfo[Any], **said: Any) -> Any:
    return info.context.root(info.field_name, said.get("input"))


def _echo(_: Any, info: GraphQLResolveInfo[Any], **said: Any) -> Any:
    return {"output": said.get("inputString")}


def _value(source: Mapping[str, Any], info: GraphQLResolveInfo[Any]) -> Any:
    """A field of what a route answered, in this schema's form; what is absent there has a value here."""
    query: Query = info.context
    query.values += 1
    if query.values > MOST_VALUES:
        raise Exhausted
    value = source.get(_wire_name(info.field_name))
    kind = info.return_type
    if value is None:
        return _unset(kind)
    if isinstance(kind, GraphQLScalarType):
        if kind.name == "LongString":
            return str(value)
        if kind.name == "Float" and value == "NaN":
            return None
    elif isinstance(kind, GraphQLList):
        query.values += len(value)
    return value


def _unset(kind: Any) -> Any:
    """What protobuf, in which MLflow answers, has where nothing was set."""
    if isinstance(kind, GraphQLNonNull):
        return _unset(kind.of_type)
    if isinstance(kind, GraphQLList):
        return []
    if isinstance(kind, GraphQLEnumType):
        return next(iter(kind.values))
    if isinstance(kind, GraphQLScalarType):
        return {"LongString": "0", "Boolean": False, "Float": 0.0}.get(kind.name, "")
    return None if kind.name == "ApiError" else {}


@cache
def _wire_name(name: str) -> str:
    """`experimentId` as routes spell it: `experiment_id`. Only names of the schema come here."""
    return re.sub(r"[A-Z]", lambda sign: f"_{sign[0].lower()}", name)


def _message(error: GraphQLError) -> str:
    cause = error.original_error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    match cause:
        case None:
            return error.message
        case HTTPException():
            return cause.detail
        case EverloopError():
            return translated(cause).message
    # What went wrong here is for the log, not for whoever asked.
    _log.error("A GraphQL field failed: %s", error.message, exc_info=cause)
    return "The server could not answer."
