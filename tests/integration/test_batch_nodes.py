"""Jobs on a Ray cluster that loses a node."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "lose_node.py"
COUNT = 200


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_node_that_is_lost_costs_no_image_and_doubles_none(tmp_path: Path) -> None:
    """Its engines and tasks move to the remaining node, which has fewer CPUs than engines."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(COUNT):
        pixels = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:03}.png")
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(photos), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    ) as job:
        try:
            printed, errors = job.communicate(timeout=240)
        finally:
            with suppress(ProcessLookupError):  # Ray's processes, if any are left
                os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, errors
    rows = json.loads(printed.splitlines()[-1])
    assert rows["lost"] > 0
    assert rows["lost"] + rows["left"] == COUNT
    shards = [pq.read_table(shard) for shard in sorted(output.glob("part-*.parquet"))]
    found = [row for shard in shards for row in shard.to_pylist()]
    assert [row["index"] for row in found] == list(range(COUNT))
    assert [row["id"] for row in found] == [f"{number:03}.png" for number in range(COUNT)]
    assert {row["status"] for row in found} == {"ok"}
