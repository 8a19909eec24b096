"""Counts and durations of the requests for each model, as Triton's statistics define them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter_ns

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.domain.requests import Stats


class ModelRecord:
    """The statistics of one model.

    Args:
        name: The model's name.
        version: The model's version in the protocol.
    """

    def __init__(self, name: str, version: str) -> None:
        self._totals = pb.ModelStatistics(name=name, version=version)
        self._executions = 0.0

    @contextmanager
    def request(self) -> Iterator[list[Stats]]:
        """Counts a request, as answered or as failed if an exception leaves the block.

        Yields:
            A list to which the caller adds the stats of each image.
        """
        started = perf_counter_ns()
        images: list[Stats] = []
        try:
            yield images
        except BaseException:  # cancelled requests count as well
            _add(self._totals.inference_stats.fail, perf_counter_ns() - started)
            raise
        self._succeed(images, perf_counter_ns() - started)

    def to_message(self) -> pb.ModelStatistics:
        """Returns the statistics so far."""
        message = pb.ModelStatistics()
        message.CopyFrom(self._totals)
        message.execution_count = round(self._executions)
        return message

    def _succeed(self, images: Sequence[Stats], duration_ns: int) -> None:
        self._totals.last_inference = time.time_ns() // 1_000_000
        self._totals.inference_count += len(images)
        # Each image counts as its share of a batch.
        self._executions += sum(1 / max(stats.batch_size, 1) for stats in images)
        stages, slowest = self._totals.inference_stats, max(images, key=_total_us)
        _add(stages.success, duration_ns)
        # Triton has no stage for compiling, so it counts as queueing.
        _add(stages.queue, (slowest.queue_us + slowest.compile_us) * 1000)
        _add(stages.compute_input, slowest.decode_us * 1000)
        _add(stages.compute_infer, slowest.compute_us * 1000)
        _add(stages.compute_output, slowest.render_us * 1000)


def _total_us(stats: Stats) -> int:
    waited_us = stats.queue_us + stats.compile_us
    return waited_us + stats.decode_us + stats.compute_us + stats.render_us


def _add(duration: pb.StatisticDuration, ns: int) -> None:
    duration.count += 1
    duration.ns += ns
