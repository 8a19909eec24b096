"""On-disk cache of measured times, keyed by graph, CPU and versions."""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from gradcam_server.graphs.compilers.base import COMPILERS
from gradcam_server.telemetry.versions import installed_versions

logger = logging.getLogger(__name__)


_FILE = "compilers.json"


class TimingCache:
    """Seconds by name for each key, in a JSON file.

    A file that cannot be read counts as empty, and one that cannot be written is left: a
    read-only or shared folder is no error.

    Args:
        path: The file; the first ``put`` makes it and its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> dict[str, float] | None:
        """Returns the seconds of a key on this CPU with these versions; None if there are none."""
        found = self._read().get(_digest(key))
        return found if isinstance(found, dict) else None

    def put(self, key: str, seconds: Mapping[str, float]) -> None:
        """Writes the seconds of a key; those of other keys stay."""
        known = {**self._read(), _digest(key): dict(seconds)}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(known, file, indent=1)
            Path(file.name).replace(self._path)
        except OSError as error:
            logger.debug("Cannot write times to %s: %s", self._path, error)

    def _read(self) -> dict[str, dict[str, float]]:
        with suppress(OSError, ValueError):
            known = json.loads(self._path.read_text())
            if isinstance(known, dict):
                return known
        return {}


def open_timing_cache(folder: str | None) -> TimingCache:
    """Returns the times of a folder; None is that of the user's cache."""
    return TimingCache((Path(folder) if folder else default_folder()) / _FILE)


def default_folder() -> Path:
    """Returns the user's cache folder (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gradcam-server"


def _digest(key: str) -> str:
    packages = {package for row in COMPILERS.values() for package in row.packages}
    versions = installed_versions(("gradcam-server", *sorted(packages)))
    machine = (_processor(), len(os.sched_getaffinity(0)), versions)
    return hashlib.sha256(json.dumps([key, machine]).encode()).hexdigest()


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
