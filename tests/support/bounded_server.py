"""A front end with small limits and a slow engine without a model, in a process of its own.

Writes its port; then, for each line that it reads, the memory that it holds and uses, as JSON.
"""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphKey, GraphOutput
from gradcam_server.domain.schedule import Answer
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.telemetry import tracing
from gradcam_server.telemetry.memory import share_heap
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport.grpc_server import FrontEnd
from support.instant import InstantBackend

LIMITS = ServeConfig(
    max_held_bytes=64 << 20,
    max_image_pixels=2_000_000,
    max_answer_bytes=24 << 20,
    max_message_bytes=4 << 20,
    max_queue_length=16,
    max_streams=4,
    worker_threads=2,
)


class SlowBackend(InstantBackend):
    """An engine that waits before it answers, so that requests queue."""

    async def compute(self, key: GraphKey, *arguments: Any) -> Answer[GraphOutput]:
        """Answers after a delay."""
        await asyncio.sleep(0.1 if key.perturbed else 0.01)
        return await super().compute(key, *arguments)


def status(name: str) -> int:
    """Returns a value of /proc/self/status in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found
    return int(found[1]) * 1024


async def main() -> None:
    """Serves until standard input ends."""
    metrics = Metrics()
    front_end = FrontEnd(LIMITS, metrics, tracing.NO_TRACER)
    explainer = Explainer(LIMITS, SlowBackend(), metrics)
    port = await front_end.listen(0)
    front_end.publish(explainer)
    print(port, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        report = {
            "resident": status("VmRSS"),
            "peak": status("VmHWM"),
            "held": front_end.ledger.total,
            "in_work": front_end.lifecycle.in_work,
        }
        print(json.dumps(report), flush=True)
    await front_end.stop()
    await explainer.close()


if __name__ == "__main__":
    share_heap()
    asyncio.run(main())
