"""Figures through Ray, whose agents on every node hand them to Prometheus."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from cvm_batch.screening.metrics import LEASE_BOUNDS, Kind, Metric


class RayMeter:
    """A `Meter`; to be used in a process that is connected to a cluster."""

    def __init__(self) -> None:
        self._made: dict[Metric, Counter | Gauge | Histogram] = {}

    def record(self, metric: Metric, value: float, **tags: str) -> None:
        made = self._made.get(metric)
        if made is None:
            made = self._made[metric] = _make(metric)
        match metric.kind:
            case Kind.COUNTER:
                if value > 0:  # Ray refuses to add nothing
                    made.inc(value, tags)
            case Kind.GAUGE:
                made.set(value, tags)
            case Kind.HISTOGRAM:
                made.observe(value, tags)


def _make(metric: Metric) -> Counter | Gauge | Histogram:
    if metric.kind is Kind.COUNTER:
        return Counter(metric.title, metric.description, tag_keys=metric.tags)
    if metric.kind is Kind.GAUGE:
        return Gauge(metric.title, metric.description, tag_keys=metric.tags)
    return Histogram(
        metric.title, metric.description, boundaries=list(LEASE_BOUNDS), tag_keys=metric.tags
    )
