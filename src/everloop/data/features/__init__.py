"""Feature views: point-in-time joins, windows, growing tables, and the online store for serving."""

from __future__ import annotations

from everloop.data.features.feature_views import FeatureView, Window
from everloop.data.features.joining import join_features
from everloop.data.features.lookup import Freshness, OnlineLookup, Skew, check_freshness, check_skew, watch_freshness
from everloop.data.features.materializing import Materialized, backfill, find_version, load_view, materialize
from everloop.data.features.on_demand import OnDemand
from everloop.data.features.online_store import OnlineRow, OnlineStore, open_online
from everloop.data.features.timelines import timeline

__all__ = [
    "FeatureView",
    "Freshness",
    "Materialized",
    "OnDemand",
    "OnlineLookup",
    "OnlineRow",
    "OnlineStore",
    "Skew",
    "Window",
    "backfill",
    "check_freshness",
    "check_skew",
    "find_version",
    "join_features",
    "load_view",
    "materialize",
    "open_online",
    "timeline",
    "watch_freshness",
]
