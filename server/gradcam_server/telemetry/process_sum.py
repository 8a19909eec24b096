"""Adds the metrics of other processes of one server to those of this process."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample


class ProcessSum:
    """A registry with the counters and histograms of other processes added; for an encoder."""

    def __init__(self, registry: CollectorRegistry, others: MultiProcessCollector) -> None:
        self._registry, self._others = registry, others

    def collect(self) -> Iterator[Metric]:
        """Yields each metric of the registry."""
        collected = self._others.collect()
        added = {metric.name: metric for metric in collected if metric.type != "gauge"}
        for metric in self._registry.collect():
            if (other := added.get(metric.name)) is not None:
                _add(metric, other)
            yield metric


def _add(metric: Metric, other: Metric) -> None:
    """Adds the values of another metric of the same kind, series by series."""
    sums = {_series(sample): sample for sample in metric.samples}
    for sample in other.samples:
        mine = sums.get(_series(sample))
        value = sample.value + (mine.value if mine is not None else 0)
        sums[_series(sample)] = sample._replace(value=value)
    metric.samples = list(sums.values())


def _series(sample: Sample) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample.name, frozenset(sample.labels.items())
