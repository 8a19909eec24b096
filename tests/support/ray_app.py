"""The application on Ray Serve, in a cluster of its own on this machine."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from gradcam_client import Client

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "ray" / "serve_config.yaml"
REPLICAS = 2
START_TIMEOUT_S = 180

# Like serve run, but in a new, small cluster.
_RUN = """
import sys
import ray
from ray.serve.scripts import cli
ray.init(
    address="local", namespace="serve", num_cpus=2, object_store_memory=100 * 2**20,
    include_dashboard=False, _temp_dir=sys.argv[1],
)
cli(["run", sys.argv[2]])
"""


class RunningRayApp:
    """``serve run`` of the shipped configuration, with two replicas, and its log.

    Args:
        args: Settings that replace those of the configuration.
        **variables: Environment variables to add.
    """

    def __init__(self, args: dict[str, Any], **variables: str) -> None:
        # The paths of Ray's sockets in this folder must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="gcray", dir="/tmp"))
        self.port = free_port()
        config = self._folder / "serve_config.yaml"
        config.write_text(yaml.safe_dump(self._configuration(args)))
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "RAY_AUTH_MODE": "disabled",
            "RAY_DEDUP_LOGS": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            **variables,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(self._folder), str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def address(self) -> str:
        """HOST:PORT of the gRPC proxy."""
        return f"127.0.0.1:{self.port}"

    @property
    def text(self) -> str:
        """The log so far."""
        return "".join(self.log)

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "".join(child.cmdline()[:1]).startswith("ray::ServeReplica:gradcam:Explainer"):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def wait_ready(self) -> None:
        """Waits until all replicas are warm and it answers."""
        self._wait(lambda: self.text.count("gradcam_server.ray_app.replica: Serving") == REPLICAS)
        with Client(self.address) as client:
            client.wait_ready(START_TIMEOUT_S)

    def wait_for_replicas(self) -> None:
        """Waits until all replicas run, warm or not."""
        self._wait(lambda: len(self.replicas()) == REPLICAS)

    def kill(self) -> None:
        """Kills it and all its children."""
        if self.process.poll() is None:
            started = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for child in started:
                try:
                    child.kill()
                except psutil.NoSuchProcess:
                    continue
        self._reader.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _configuration(self, args: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text("utf-8"))
        config["http_options"]["port"] = free_port()
        config["grpc_options"]["port"] = self.port
        (application,) = config["applications"]
        application["args"] = args
        (deployment,) = application["deployments"]
        deployment["ray_actor_options"]["num_cpus"] = 0.5
        deployment["autoscaling_config"]["min_replicas"] = REPLICAS
        deployment["autoscaling_config"]["initial_replicas"] = REPLICAS
        deployment["autoscaling_config"]["max_replicas"] = REPLICAS
        return config

    def _wait(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not happened():
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.1)

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stream:
            for line in stream:
                self.log.append(line)


def free_port() -> int:
    """Returns a free port."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
