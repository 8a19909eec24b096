"""Limits on all front ends are divided among them."""

from dataclasses import replace

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.config.shares import share
from gradcam_server.errors import StartupError


def test_together_the_parts_do_not_exceed_a_limit() -> None:
    """Each has its part, rounded down; other settings stay."""
    config = ServeConfig(frontends=3, max_queue_length=100, max_streams=8, worker_threads=4)
    part = share(config)
    assert (part.max_queue_length, part.max_streams, part.worker_threads) == (33, 2, 4)
    assert part.max_held_bytes is None
    assert share(replace(config, max_held_bytes=1 << 20)).max_held_bytes == (1 << 20) // 3


def test_one_alone_has_all() -> None:
    """Without --frontends nothing changes."""
    config = ServeConfig(max_queue_length=1)
    assert share(config) == config


def test_a_limit_that_cannot_be_divided_is_refused() -> None:
    """The message names both flags and what would do."""
    with pytest.raises(StartupError, match="--max-streams 2 .* at least 3, or --frontends at most"):
        share(ServeConfig(frontends=3, max_streams=2))
