"""What was measured before on this machine, so that it need not be measured again."""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile

logger = logging.getLogger(__name__)

_PACKAGES = ("gradcam-server", "tensorflow", "tensorflow-cpu", "keras", "openvino")


class Memory:
    """Seconds by name for each of many questions, in a JSON file.

    What cannot be read counts as unknown, and what cannot be written is measured again: a
    read-only or shared folder is no error.

    Args:
        path: The file; made with its folder when there is something to remember.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, question: str) -> dict[str, float] | None:
        """Returns what was remembered of a question, on this machine with these versions."""
        found = self._read().get(_key(question))
        return found if isinstance(found, dict) else None

    def remember(self, question: str, seconds: Mapping[str, float]) -> None:
        """Keeps an answer beside those to other questions."""
        known = {**self._read(), _key(question): dict(seconds)}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(known, file, indent=1)
            Path(file.name).replace(self._path)
        except OSError as error:
            logger.debug("Cannot remember times in %s: %s", self._path, error)

    def _read(self) -> dict[str, dict[str, float]]:
        with suppress(OSError, ValueError):
            known = json.loads(self._path.read_text())
            if isinstance(known, dict):
                return known
        return {}


def default_folder() -> Path:
    """Returns the user's cache folder (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gradcam-server"


def _key(question: str) -> str:
    machine = (_processor(), len(os.sched_getaffinity(0)), *map(_version, _PACKAGES))
    return hashlib.sha256(json.dumps([question, machine]).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
