"""The moments of a start, from the server's log."""

from datetime import datetime

import pytest

from startup import read_steps

LOG = """2026-01-02 03:04:05,250 DEBUG gradcam_server.cli.serve: Read the settings
2026-01-02 03:04:05,600 INFO gradcam_server.serving.server: Listening on 127.0.0.1:7; warming up
2026-01-02 03:04:05,700 DEBUG gradcam_server.engine.sources.export: Read the graphs of /a
2026-01-02 03:04:05,800 DEBUG gradcam_server.engine.sources.export: Read the graphs of /b
  a line of something else: Serving a
2026-01-02 03:04:06,000 INFO gradcam_server.serving.server: Serving a, b
"""
STARTED = datetime(2026, 1, 2, 3, 4, 5).timestamp()


@pytest.mark.parametrize(
    ("step", "ms"),
    [
        ("settings read", 250.0),
        ("port bound", 600.0),
        ("graphs read", 800.0),
        ("serving", 1000.0),
    ],
)
def test_a_step_ends_with_the_last_of_its_lines(step: str, ms: float) -> None:
    """Several models have a line each; the moments count from the start of the process."""
    assert read_steps(LOG, STARTED)[step] == ms


@pytest.mark.parametrize("step", ["engine imported", "files checked", "graphs run"])
def test_a_step_that_the_log_lacks_is_left_out(step: str) -> None:
    """Older versions log fewer steps."""
    assert step not in read_steps(LOG, STARTED)
