"""Route for the correlation of two filters: their normalised pointwise mutual information.

Source: G. Bouma, "Normalized (Pointwise) Mutual Information in Collocation Extraction", 2009. From -1 (never together)
over 0 (independent) to 1 (always together); NaN if one of the two never matches. The smoothed value adds one half to
each cell of the two-by-two table (Jeffreys' prior).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from everloop.integrations.mlflow.tracking_api.genai.trace_search import TraceQuery, matching, traces_in
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute

SMOOTHING = 0.5


def calculate_correlation(context: HandlerContext) -> Mapping[str, Any]:
    fields = context.fields
    numbers = fields.texts("experiment_ids", required=True)
    first, second = TraceQuery.of(fields.text("filter_string1")), TraceQuery.of(fields.text("filter_string2"))
    base = TraceQuery.of(fields.text("base_filter", required=False))
    traces = matching(context.store, traces_in(context.store, numbers), base)
    firsts, seconds = (
        {trace.trace_id for trace in matching(context.store, traces, query)} for query in (first, second)
    )
    counts = len(firsts & seconds), len(firsts), len(seconds), len(traces)
    figures = {"npmi": npmi(*counts), "npmi_smoothed": npmi(*counts, smoothing=SMOOTHING)}
    return {
        # Clients read missing values as NaN.
        **{name: figure for name, figure in figures.items() if not math.isnan(figure)},
        "filter1_count": counts[1],
        "filter2_count": counts[2],
        "joint_count": counts[0],
        "total_count": counts[3],
    }


def npmi(both: int, first: int, second: int, total: int, smoothing: float = 0.0) -> float:
    """Return the normalised pointwise mutual information of two events, from their counts among `total`."""
    cells = both, first - both, second - both, total - first - second + both
    if not first or not second or min(cells) < 0:
        return math.nan
    if not both and not smoothing:
        return -1.0
    if both == total:
        return 1.0
    together, *_ = shown = [cell + smoothing for cell in cells]
    everything = sum(shown)
    alone = math.log(together + shown[1]) + math.log(together + shown[2])
    mutual = math.log(together) + math.log(everything) - alone
    return max(-1.0, min(1.0, mutual / (math.log(everything) - math.log(together))))


ROUTES = (
    HandlerRoute("POST", "3.0/mlflow/traces/calculate-filter-correlation", calculate_correlation, "read", slow=True),
)
