"""A version behind an endpoint: it answers, and every answer is on disk before it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.serving.app import EndpointApp as EndpointApp
    from everloop.serving.endpoints import (
        check_endpoint_name as check_endpoint_name,
        is_served as is_served,
        set_state as set_state,
    )
    from everloop.serving.exchange import Request as Request, Response as Response, Service as Service
    from everloop.serving.label_log import add_labels as add_labels, fold_labels as fold_labels
    from everloop.serving.log_reading import (
        find_prediction as find_prediction,
        read_inputs as read_inputs,
        read_labelled as read_labelled,
        read_labels as read_labels,
        read_predictions as read_predictions,
    )
    from everloop.serving.prediction_log import fold_predictions as fold_predictions
    from everloop.serving.process import EndpointProcess as EndpointProcess, serving_url as serving_url
    from everloop.serving.routing import RoutingTable as RoutingTable
    from everloop.serving.server import serve_endpoint as serve_endpoint, serve_house as serve_house

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "app": ["EndpointApp"],
        "endpoints": ["check_endpoint_name", "is_served", "set_state"],
        "exchange": ["Request", "Response", "Service"],
        "label_log": ["add_labels", "fold_labels"],
        "log_reading": ["find_prediction", "read_inputs", "read_labelled", "read_labels", "read_predictions"],
        "prediction_log": ["fold_predictions"],
        "process": ["EndpointProcess", "serving_url"],
        "routing": ["RoutingTable"],
        "server": ["serve_endpoint", "serve_house"],
    },
)
