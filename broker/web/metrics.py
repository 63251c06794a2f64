"""Counters for the operator: what came, what was refused, how long it took.

Requests that nobody authenticated are counted here and nowhere else (I17): they make no ledger entry.
No label has a value that a caller chose.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client import values as metric_values
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_ROUTE: Final = "unknown"
_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)

_REGISTRY: Final = CollectorRegistry()
_REQUESTS: Final = Counter(
    "broker_http_requests",
    "Requests answered, by route and status.",
    ("route", "method", "status"),
    registry=_REGISTRY,
)
_REFUSALS: Final = Counter(
    "broker_http_refusals", "Requests refused, by stable error code.", ("route", "code"), registry=_REGISTRY
)
_SECONDS: Final = Histogram(
    "broker_http_seconds", "Seconds from request to answer.", ("route",), buckets=_BUCKETS, registry=_REGISTRY
)
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


def count_request(*, route: str, method: str, status: int, ms: int) -> None:
    """One answer. ``route`` is the name of a declared route, or ``UNKNOWN_ROUTE``; ``ms`` milliseconds."""
    _REQUESTS.labels(route, method if method in _METHODS else "other", str(status)).inc()
    _SECONDS.labels(route).observe(max(0, ms) / 1000)


def count_refusal(*, route: str, code: str) -> None:
    """One refusal, under its stable code."""
    _REFUSALS.labels(route, code).inc()


def render_metrics() -> bytes:
    """Everything counted so far, over all workers of this server, in the Prometheus text format."""
    if metric_values.ValueClass.__name__ == "MutexValue":
        return generate_latest(_REGISTRY)
    # Several workers: each keeps its values in a file, and whoever is asked adds them up.
    joined = CollectorRegistry()
    MultiProcessCollector(joined)  # type: ignore[no-untyped-call]  # its constructor has no types
    return generate_latest(joined)
