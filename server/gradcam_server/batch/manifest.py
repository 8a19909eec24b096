"""The manifest of an output folder: which job it holds, its progress, and the time of each run.

It is for people, and keeps the rows of a second job out of the folder. Finished parts are those
with a shard, whatever the manifest says.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gradcam_server.batch.errors import OutputError
from gradcam_server.batch.shards import Folder, write_atomically
from gradcam_server.telemetry.versions import installed_versions

NAME = "_manifest.json"
_FORMAT = 1
_PACKAGES = (
    *("gradcam-server", "tensorflow", "tensorflow-cpu", "openvino", "jax", "ray"),
    *("numpy", "opencv-python-headless", "pyarrow"),
)


def fingerprint(values: Mapping[str, Any]) -> str:
    """Returns a hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """Reads a manifest.

    Raises:
        OutputError: There is none, it is broken, or another version wrote it.
    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise OutputError(
            f"{folder}: it is not an output folder of gradcam batch: {path.name} cannot be read "
            f"({error.strerror})"
        ) from error
    except ValueError as error:
        raise OutputError(f"{path}: it is broken ({error}); name another folder") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise OutputError(f"{path}: another version wrote it; name another folder")
    return manifest


class Manifest:
    """The manifest of a folder; several processes may write it.

    Args:
        folder: The output folder.
        inputs: The inputs: their count, fingerprint and location.
        configuration: All that decides the rows. A folder has one configuration.

    Raises:
        OutputError: The folder holds another job.
    """

    def __init__(
        self, folder: Folder, inputs: Mapping[str, Any], configuration: Mapping[str, Any]
    ) -> None:
        self._folder, self._path = folder, folder.path / NAME
        self._run = ""
        self.job = fingerprint({"inputs": inputs["fingerprint"], "configuration": configuration})
        new = {
            "format": _FORMAT,
            "job": self.job,
            "inputs": inputs,
            "configuration": configuration,
            "counts": {},
            "seconds": 0.0,
            "runs": {},
        }
        with folder.manifest_lock():
            if self._path.exists():
                self._join(read(folder.path), new)
            elif folder.has_shards():
                raise OutputError(
                    f"{folder.path}: it holds Parquet files, but no {NAME}, so they are not "
                    "of this job; name another folder"
                )
            else:
                self._write(new)

    def _join(self, there: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        difference = _difference(there, new)
        if difference is None:
            return
        with self._folder.if_unused() as unused:
            # Without shards there is nothing to mix up: the first attempt had a wrong option.
            if not unused:
                raise OutputError(f"{self._folder.path}: {difference}")
            self._write(new)

    def begin(self, engine: Mapping[str, Any]) -> None:
        """Records that a run begins, with its engine and the versions of packages."""
        started = datetime.now(UTC)
        self._run = started.isoformat(timespec="microseconds")
        self.note(
            {**engine, "outcome": "unfinished", "versions": installed_versions(_PACKAGES)}, {}
        )

    def note(self, run: Mapping[str, Any], counts: Mapping[str, int]) -> None:
        """Records the progress of the run, and the counts of the whole folder."""
        with self._folder.manifest_lock():
            manifest = read(self._folder.path)
            runs = manifest["runs"]
            runs[self._run] = {**runs.get(self._run, {}), **run}
            manifest["seconds"] = round(sum(entry.get("seconds", 0) for entry in runs.values()), 3)
            if counts:
                manifest["counts"] = dict(counts)
            self._write(manifest)

    def _write(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self._path, json.dumps(manifest, indent=2).encode() + b"\n")


def _difference(there: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Says how a new job differs from the one in the folder; None if they are the same."""
    old_inputs, inputs = there["inputs"], new["inputs"]
    if old_inputs["fingerprint"] != inputs["fingerprint"]:
        return (
            f"it holds a job over other inputs: {old_inputs['count']:,} of {old_inputs['where']}, "
            f"and now {inputs['count']:,} of {inputs['where']}. Name another folder for these"
        )
    old, configuration = there["configuration"], new["configuration"]
    changed = [
        f"{name} was {json.dumps(old.get(name))} and is now {json.dumps(configuration.get(name))}"
        for name in sorted({*old, *configuration})
        if old.get(name) != configuration.get(name)
    ]
    if not changed:
        return None
    return (
        f"it holds a job that was configured differently: {'; '.join(changed)}. Name another "
        "folder, or give the options of the first run"
    )
