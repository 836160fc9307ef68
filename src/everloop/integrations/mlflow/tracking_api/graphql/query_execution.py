"""Executes GraphQL queries. Each root field calls one REST route, with that route's role and checks.

Queries for which MLflow responds 500 or drops the connection get an error in the list, with status 200.
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
from everloop.integrations.mlflow.tracking_api.codec import Fields, MlflowError, as_mlflow_error, mistyped
from everloop.integrations.mlflow.tracking_api.graphql.document_limits import check_document, check_text
from everloop.integrations.mlflow.tracking_api.graphql.mlflow_schema import schema
from everloop.integrations.mlflow.tracking_api.handler_context import Handler, HandlerRoute
from everloop.integrations.mlflow.tracking_api.web_page import dataset_summaries
from everloop.server.request_values import check_json

LARGEST_BODY = 1 << 20
MOST_DEPTH = 500
"""Levels of a request's variables."""
MOST_VALUES = 300_000
"""Most values in the response to a query. The limits of a search count rows, which aliases multiply."""
_RUNS_PER_SEARCH = 1000
_MOST_VERSIONS = 200_000

CallRoute = Callable[[HandlerRoute, Fields], Mapping[str, Any]]
"""Calls a route in the name of the query's user, from any thread, and returns its response."""

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
"""The route of each root field."""


class Exhausted(BaseException):
    """Stops an execution at once. An `Exception` would become the error of one field, and the others would continue."""


class Query:
    """State of one query: how it calls routes, cached results, and the number of values so far."""

    def __init__(self, call_route: CallRoute) -> None:
        self.call_route = call_route
        self.values = 0
        self._experiments: dict[str, Any] = {}
        self._versions: dict[str, list[Any]] = {}
        self._runs: dict[str, None] = {}

    def root(self, name: str, arguments: Mapping[str, Any] | None) -> Mapping[str, Any]:
        check_json(arguments or {})
        response = self.call_route(ROOTS[name], Fields(arguments or {}))
        for run in (*response.get("runs", ()), *([response["run"]] if "run" in response else [])):
            self._runs[run["info"]["run_id"]] = None
        return response

    def experiment_of(self, run: Mapping[str, Any]) -> Any:
        number = run["info"]["experiment_id"]
        if number not in self._experiments:
            response = self.call_route(ROOTS["mlflowGetExperiment"], Fields({"experiment_id": number}))
            self._experiments[number] = response["experiment"]
        return self._experiments[number]

    def versions_of(self, run: Mapping[str, Any]) -> list[Any]:
        """Return the versions of a run. They are looked up for all runs of the response at once."""
        name = run["info"]["run_id"]
        if name not in self._versions:
            wanted = [one for one in self._runs if one not in self._versions]
            for start in range(0, len(wanted), _RUNS_PER_SEARCH):
                self._look_up(wanted[start : start + _RUNS_PER_SEARCH])
        return self._versions.get(name, [])

    def _look_up(self, run_ids: Sequence[str]) -> None:
        ids = ", ".join(f"'{run_id}'" for run_id in run_ids)
        search = Fields({"filter": f"run_id IN ({ids})", "max_results": _MOST_VERSIONS})
        self._versions.update((one, []) for one in run_ids)
        for version in self.call_route(ROOTS["mlflowSearchModelVersions"], search).get("model_versions", ()):
            self._versions[version["run_id"]].append(version)


def answer_query(fields: Fields, call_route: CallRoute) -> dict[str, Any]:
    """Execute the `query` of a request, with its `variables` and `operationName`.

    Runs in a thread: parsing a query takes milliseconds, and executing it may take seconds.

    Raises:
        MlflowError: the request has no query, or its variables are not an object.
    """
    text = fields.text("query")
    variables = fields.raw("variables")
    if variables is not None and not isinstance(variables, dict):
        raise mistyped("variables", variables)
    operation = fields.optional_text("operationName")
    try:
        result = _executed(text, variables, operation or None, Query(call_route))
    except GraphQLError as error:
        result = ExecutionResult(None, [error])
    except RecursionError:
        result = ExecutionResult(None, [GraphQLError("The query is nested too deeply.")])
    except Exhausted:
        result = ExecutionResult(
            None,
            [GraphQLError(f"The response would have more than {MOST_VALUES} values. Request fewer rows or fields.")],
        )
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
    """Return the schema with a resolver for each field that is not just a value of its object."""
    known = schema()
    for root in (known.query_type, known.mutation_type):
        for name, field in root.fields.items() if root is not None else ():
            field.resolve = _root if name in ROOTS else _echo
    run: Any = known.type_map["MlflowRunExtension"]
    run.fields["experiment"].resolve = lambda one, info: info.context.experiment_of(one)
    run.fields["modelVersions"].resolve = lambda one, info: info.context.versions_of(one)
    return known


def _root(_: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
    return info.context.root(info.field_name, arguments.get("input"))


def _echo(_: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
    return {"output": arguments.get("inputString")}


def _value(source: Mapping[str, Any], info: GraphQLResolveInfo[Any]) -> Any:
    """Return a field of a route's response in the schema's form; fields that are missing there get a default."""
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
    """Return protobuf's default for an unset field, as MLflow responds with."""
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
    """Return `experimentId` in the form of the routes: `experiment_id`. Only the schema's names are passed."""
    return re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


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
            return as_mlflow_error(cause).message
    # Details of a bug go to the log, not to the client.
    _log.error("A GraphQL field failed: %s", error.message, exc_info=cause)
    return "The server could not handle this field. Its log has the details."
