"""Checks that a job gives the same rows by every engine, although it is killed at random times.

    local, ray     gradcam batch, killed (kill -9) with all its processes
    servers        gradcam batch --server with two servers, killed likewise

Each input's id must occur once; classes must be equal, and maps equal to the rounding of float16.

Usage: PYTHONPATH=tests python benchmarks/batch_engines.py FOLDER [--kills 3] [--seed S]
       [--engine E]... [--output FILE] [OPTIONS OF gradcam serve FOR THE MODEL]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradcam_server.batch.sources.opening import open_source
from support.server import GRADCAM, RunningServer

ENGINES = ("local", "ray", "servers")
SERVERS = 2
_WAIT_S = 1800


def run_killed(command: Sequence[str], output: Path, kills: int, chance: random.Random) -> float:
    """Kills a job ``kills`` times, then runs it to its end; returns the seconds of the last run."""
    for _ in range(kills):
        process = start(command)
        before = shards(output)
        # Killed once it has written one to three more shards.
        wanted = before + chance.randint(1, 3)
        began = time.monotonic()
        while process.poll() is None and shards(output) < wanted:
            assert time.monotonic() - began < _WAIT_S
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        print(f"  killed with {shards(output)} shards; exit status {status}", flush=True)
    began = time.monotonic()
    process = start(command)
    assert process.wait(_WAIT_S) == 0
    return time.monotonic() - began


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def shards(output: Path) -> int:
    return len(list(output.glob("*.parquet")))


def read(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output).sort_values("index", ignore_index=True)


def maps(table: pd.DataFrame) -> Any:
    flat = [
        np.frombuffer(data, dtype).astype(np.float32) * scale
        for data, dtype, scale in zip(
            table.heatmap, table.heatmap_dtype, table.heatmap_scale, strict=True
        )
    ]
    return np.stack(flat)


def compare(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """Compares two results; maps by the maximum difference over the map's maximum."""
    given, found = maps(one), maps(other)
    scale = np.maximum(given.max(axis=1), 1e-12)
    return {
        "same_ids": bool((one.id == other.id).all()),
        "same_status": bool((one.status == other.status).all()),
        "same_classes": bool((one.target == other.target).all()),
        "greatest_map_difference": float((np.abs(given - found).max(axis=1) / scale).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", action="append", choices=ENGINES, help="all by default")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=250)
    parser.add_argument("--output", type=Path)
    arguments, options = parser.parse_known_args()
    options = options or ["--model", "efficientnet-lite0", "--compiler", "openvino"]
    source = open_source(str(arguments.folder))
    ids = [item.id for item in source.read(0, len(source))]
    chance, tables = random.Random(arguments.seed), {}  # noqa: S311 - moments to kill at
    report: dict[str, Any] = {"images": len(ids), "kills": arguments.kills, "engines": {}}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for engine in arguments.engine or ENGINES:
            output = Path(folder, engine)
            job = [GRADCAM, "batch", str(arguments.folder), str(output)]
            job += ["--shard-size", str(arguments.shard_size)]
            if engine == "servers":
                servers = [RunningServer(*options) for _ in range(SERVERS)]
                for server in servers:
                    stack.callback(server.kill)
                addresses = [server.wait_ready().address for server in servers]
                job += ["--server", ",".join(addresses)]
            else:
                job += ["--engine", engine, *options]
            print(engine, flush=True)
            seconds = run_killed(job, output, arguments.kills, chance)
            table = tables[engine] = read(output)
            report["engines"][engine] = {
                "every_id_once": table.id.tolist() == ids,
                "errors": int((table.status != "ok").sum()),
                "leftovers": len(list(output.glob("*.tmp"))),
                "last_run_s": round(seconds, 1),
            }
    first, *others = tables
    for engine in others:
        report["engines"][engine][f"beside {first}"] = compare(tables[first], tables[engine])
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
