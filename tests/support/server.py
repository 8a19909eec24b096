"""``gradcam serve`` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from gradcam_client import Client
from support.exported_model import exported_model

GRADCAM = str(Path(sys.executable).with_name("gradcam"))
TRACED = ("--model", "efficientnet-lite0", "--compiler", "tensorflow", "--batch-sizes", "1,4")
"""Options of a server that compiles with TensorFlow: slow to start, but it compiles any graph."""

START_TIMEOUT_S = 180


def quick() -> tuple[str, ...]:
    """Returns the options of a server of the same trained model that is ready in two seconds."""
    return ("--model", f"efficientnet-lite0={exported_model()}", "--batch-sizes", "1,4")


class RunningServer:
    """``gradcam serve`` as a user starts it, and its log.

    Args:
        *options: Options of the command.
        stdout: The file for its output; None is this process's.
        **variables: Environment variables to add.
    """

    def __init__(self, *options: str, stdout: Path | None = None, **variables: str) -> None:
        self.stdout = stdout
        with ExitStack() as files:
            self.process = subprocess.Popen(
                [GRADCAM, "serve", "--port", "0", *options],
                stdout=files.enter_context(stdout.open("wb")) if stdout else None,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "GRADCAM_COMPUTE_THREADS": "1", **variables},
            )
        self.log: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def address(self) -> str:
        """HOST:PORT; waits until it listens."""
        assert self._listening.wait(START_TIMEOUT_S), self.text
        match = re.search(r"Listening on (\S+:\d+)", self.text)
        assert match, self.text
        return match[1]

    @property
    def http_address(self) -> str:
        """The address of /metrics and the probes."""
        match = re.search(r"Metrics on (http://\S+:\d+)/metrics", self.text)
        assert match, self.text
        return match[1]

    def metric(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric's samples with these labels."""
        with urllib.request.urlopen(f"{self.http_address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def engines(self) -> list[psutil.Process]:
        """Returns its engine processes."""
        children = psutil.Process(self.pid).children()
        alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return [child for child in alive if "gradcam_server.engine.ipc.main" in child.cmdline()]

    @property
    def text(self) -> str:
        """The log so far."""
        return "".join(self.log)

    def wait_ready(self) -> "RunningServer":
        """Waits until it is SERVING."""
        with Client(self.address) as client:
            client.wait_ready(START_TIMEOUT_S)
        return self

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait_for(self, text: str, timeout_s: float = 60) -> None:
        """Waits until the log holds ``text``; fails after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.text}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end and returns the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout_s: float = 60) -> int:
        """Waits for the end and returns the exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join()
        return status

    def kill(self) -> None:
        """Kills it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stream:
            for line in stream:
                self.log.append(line)
                if "Listening on" in line:
                    self._listening.set()
        self._listening.set()


@contextmanager
def serving(*options: str, stdout: Path | None = None, **variables: str) -> Iterator[RunningServer]:
    """Runs a warm server. Whatever a test sends it, nothing may be a fault of the server's."""
    running = RunningServer(*options, stdout=stdout, **variables)
    try:
        yield running.wait_ready()
        assert "Traceback" not in running.text, running.text
        assert running.stop() == 0
    finally:
        running.kill()
