"""Runs a job on a Ray cluster of two nodes, of which one is lost: FOLDER OUTPUT.

The engines are slow and have no model. Prints the number of rows of each node as JSON.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from gradcam_server.batch import ray_data
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.job import Job, run
from gradcam_server.batch.schema import OK, Row, to_batch
from gradcam_server.batch.sources.opening import open_source
from gradcam_server.config.settings import ServeConfig

# There are more engines than the remaining node has CPUs.
NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}
ENGINES = 3
# So that the loss is noticed in seconds.
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}


class SlowEngine:
    """Answers with the id of its node."""

    def __init__(self, config: ServeConfig, options: ExplainOptions, folder: str) -> None:
        self._node = ray.get_runtime_context().get_node_id()

    def __call__(self, images: pa.Table) -> pa.Table:
        time.sleep(0.1)
        rows = [
            Row(image["index"], image["id"], image["path"], OK, model=self._node)
            for image in images.to_pylist()
        ]
        return pa.Table.from_batches([to_batch(rows, overlays=False)])


@ray.remote
def look(config: ServeConfig, options: ExplainOptions, folder: str) -> Sequence[int]:
    """Returns an input size, without a model."""
    return (32, 32)


class Remover:
    """Removes a node without notice, as soon as there are rows from it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._is_removed = cluster, False
        self._node = cluster.add_node(**NODE)
        self.rows: Counter[str] = Counter()

    def begin(self, total: int, finished: int, errors: int) -> None:
        pass

    def advance(self, row: Row) -> None:
        self.rows["lost" if row.model == self._node.node_id else "left"] += 1
        if self.rows["lost"] and not self._is_removed:
            self._is_removed = True
            self._cluster.remove_node(self._node, allow_graceful=False)


if __name__ == "__main__":
    folder, output = sys.argv[1:]
    ray_data.EngineActor = SlowEngine  # type: ignore[assignment, misc]
    ray_data._check_model = look
    ray_data._BATCH_IMAGES = 8
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK},
    )
    try:
        remover = Remover(cluster)
        cluster.wait_for_nodes()
        run(
            Job(open_source(folder), folder, Path(output), shard_size=20),
            lambda: ray_data.RayStage(ServeConfig(), ExplainOptions(), cluster.address, ENGINES),
            remover,
        )
        print(json.dumps(remover.rows))
    finally:
        cluster.shutdown()
