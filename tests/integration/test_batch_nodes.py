"""Jobs on a Ray cluster that loses a node."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "lose_node.py"
COUNT = 200


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_node_that_is_lost_costs_no_image_and_doubles_none(tmp_path: Path) -> None:
    """Its engines and tasks go to the node that is left, though it has fewer CPUs than engines."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(COUNT):
        pixels = np.full((8, 8, 3), number, np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:03}.png")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(photos), str(output), "0"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert rows["lost"] > 0
    assert rows["lost"] + rows["left"] == COUNT
    shards = [pq.read_table(shard) for shard in sorted(output.glob("part-*.parquet"))]
    found = [row for shard in shards for row in shard.to_pylist()]
    assert [row["index"] for row in found] == list(range(COUNT))
    assert [row["id"] for row in found] == [f"{number:03}.png" for number in range(COUNT)]
    assert {row["status"] for row in found} == {"ok"}
