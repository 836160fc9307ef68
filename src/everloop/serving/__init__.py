"""A version behind an endpoint: it answers, and every answer is on disk before it leaves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.serving.app import EndpointApp
    from everloop.serving.endpoints import check_endpoint_name, is_served, set_state
    from everloop.serving.exchange import Request, Response, Service
    from everloop.serving.label_log import add_labels, fold_labels
    from everloop.serving.log_reading import (
        find_prediction,
        read_inputs,
        read_labelled,
        read_labels,
        read_predictions,
    )
    from everloop.serving.prediction_log import fold_predictions
    from everloop.serving.process import EndpointProcess, serving_url
    from everloop.serving.routing import RoutingTable
    from everloop.serving.server import serve_endpoint, serve_house

_WHERE = {
    "EndpointApp": "app",
    "EndpointProcess": "process",
    "Request": "exchange",
    "Response": "exchange",
    "RoutingTable": "routing",
    "Service": "exchange",
    "add_labels": "label_log",
    "check_endpoint_name": "endpoints",
    "find_prediction": "log_reading",
    "fold_labels": "label_log",
    "fold_predictions": "prediction_log",
    "is_served": "endpoints",
    "read_inputs": "log_reading",
    "read_labelled": "log_reading",
    "read_labels": "log_reading",
    "read_predictions": "log_reading",
    "serve_endpoint": "server",
    "serve_house": "server",
    "serving_url": "process",
    "set_state": "endpoints",
}

__all__ = [
    "EndpointApp",
    "EndpointProcess",
    "Request",
    "Response",
    "RoutingTable",
    "Service",
    "add_labels",
    "check_endpoint_name",
    "find_prediction",
    "fold_labels",
    "fold_predictions",
    "is_served",
    "read_inputs",
    "read_labelled",
    "read_labels",
    "read_predictions",
    "serve_endpoint",
    "serve_house",
    "serving_url",
    "set_state",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value
