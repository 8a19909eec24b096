"""Runs a job: inputs -> parts -> rows -> shards, with any stage."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from gradcam_server.batch.errors import InputError, StageError, TooManyErrorsError
from gradcam_server.batch.explain_options import ExplainOptions
from gradcam_server.batch.manifest import Manifest
from gradcam_server.batch.plan import Part, Share, cut, merge
from gradcam_server.batch.schema import ERROR, Row
from gradcam_server.batch.shards import Folder
from gradcam_server.batch.sources.base import Source
from gradcam_server.batch.stage import OpenStage

_NOTE_INTERVAL_S = 10.0
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Job:
    """A job to run.

    Attributes:
        source: The inputs.
        where: Their location, as the user gave it.
        output: The folder of shards.
        options: How each image is explained.
        model: What else decides the answers: the model, and the origin of its weights.
        limit: The number of inputs to take, from the first; None is all.
        share: The part of the job that this process does.
        shard_size: Rows of a shard.
        errors_max: How many images of the share may fail; None is no limit.
        engine: The name of the engine, for the manifest.
        column: The column of Parquet inputs, as the user gave it.
    """

    source: Source
    where: str
    output: Path
    options: ExplainOptions = field(default_factory=ExplainOptions)
    model: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    share: Share = field(default_factory=Share)
    shard_size: int = 1000
    errors_max: int | None = None
    engine: str = "local"
    column: str | None = None

    @property
    def input_count(self) -> int:
        """The number of inputs of the whole job."""
        return len(self.source) if self.limit is None else min(len(self.source), self.limit)

    @property
    def inputs(self) -> dict[str, Any]:
        """The manifest's description of the inputs."""
        return {
            "where": self.where,
            "kind": self.source.kind,
            "column": self.column,
            "count": self.input_count,
            "left_out": dict(self.source.left_out),
            "fingerprint": self.source.fingerprint,
        }

    @property
    def configuration(self) -> dict[str, Any]:
        """All that decides the rows and their division into shards."""
        return {
            **asdict(self.options),
            **self.model,
            "limit": self.limit,
            "shard_size": self.shard_size,
        }


class Reporter(Protocol):
    """Receives the progress of a job."""

    def begin(self, total: int, finished: int, errors: int) -> None:
        """The job begins; ``finished`` of the ``total`` images of its share are done already."""
        ...

    def advance(self, row: Row) -> None:
        """An image is done; its shard may not be written yet."""
        ...


@dataclass(frozen=True)
class Summary:
    """The outcome of a run.

    Attributes:
        images: Images of this share.
        done: How many of them this run explained.
        errors: How many images of the share failed.
        seconds: Duration of the run.
        parts: Shards of this share.
    """

    images: int
    done: int
    errors: int
    seconds: float
    parts: int


def run(job: Job, open_stage: OpenStage, report: Reporter) -> Summary:
    """Explains the images that have no shard yet.

    Args:
        job: The job.
        open_stage: Opens the stage that explains images; called only if there is work to do.
        report: Receives the progress.

    Raises:
        BatchError: The job cannot go on. Finished shards stay.
    """
    started = perf_counter()
    parts = cut(job.input_count, job.shard_size)
    if not parts:
        raise InputError(f"{job.where}: there is nothing to do with a limit of {job.limit}")
    with closing(Folder(job.output)) as folder:
        manifest = Manifest(folder, job.inputs, job.configuration)
        mine = parts[slice(*job.share.range(len(parts)))]
        if mine:  # there may be more processes than parts
            folder.lock_parts(mine[0].number, mine[-1].number + 1)
        folder.remove_leftovers(mine)
        finished = {part: folder.errors_of(part, manifest.job) for part in mine}
        errors = sum(count or 0 for count in finished.values())
        todo = [part for part in mine if finished[part] is None]
        images = sum(map(len, mine))
        report.begin(images, images - sum(map(len, todo)), errors)
        if todo:
            errors += _Run(job, folder, manifest, started, errors).explain(todo, open_stage, report)
    done = sum(map(len, todo))
    return Summary(images, done, errors, perf_counter() - started, len(mine))


class _Run:
    """One run of a job, and its entry in the manifest."""

    def __init__(
        self, job: Job, folder: Folder, manifest: Manifest, started: float, errors: int
    ) -> None:
        self._job, self._folder, self._manifest = job, folder, manifest
        self._started, self._errors_before = started, errors
        self._images = self._errors = 0
        self._examples: list[str] = []
        self._note_after = time.monotonic() + _NOTE_INTERVAL_S
        manifest.begin({"engine": job.engine, "share": str(job.share)})

    def explain(self, todo: list[Part], open_stage: OpenStage, report: Reporter) -> int:
        """Writes the shards of parts; returns how many of their rows are errors."""
        outcome = "interrupted"
        try:
            with open_stage() as stage:
                rows = stage.rows(self._job.source, merge(todo))
                try:
                    for part in todo:
                        with self._folder.writer(part, self._manifest.job) as shard:
                            for _ in range(len(part)):
                                row = next(rows, None)
                                if row is None:
                                    raise StageError(f"{part.name}: rows are missing")
                                self._count(row)
                                shard.add(row)
                                report.advance(row)
                        self._images += len(part)
                        if time.monotonic() > self._note_after:
                            self._note("unfinished")
                finally:
                    if hasattr(rows, "close"):
                        rows.close()
            outcome = "finished"
        except Exception as error:
            outcome = f"failed: {error}"
            raise
        finally:
            self._note(outcome)
        return self._errors

    def _count(self, row: Row) -> None:
        if row.status != ERROR:
            return
        self._errors += 1
        if len(self._examples) < _SHOWN_ERRORS:
            self._examples.append(f"{row.path}: {row.error}")
        errors_max = self._job.errors_max
        if errors_max is not None and self._errors_before + self._errors > errors_max:
            raise TooManyErrorsError(
                f"more than {errors_max} images failed (--errors-max): "
                f"{'; '.join(self._examples)}. Finished shards stay; the same command with a "
                "higher --errors-max goes on"
            )

    def _note(self, outcome: str) -> None:
        began = time.monotonic()
        job = self._job
        count = images = errors = 0
        for part in cut(job.input_count, job.shard_size):
            found = self._folder.errors_of(part, self._manifest.job)
            if found is not None:
                count, images, errors = count + 1, images + len(part), errors + found
        parts = -(-job.input_count // job.shard_size)
        self._manifest.note(
            {
                "outcome": outcome,
                "seconds": round(perf_counter() - self._started, 3),
                "images": self._images,
            },
            {
                "images": images,
                "ok": images - errors,
                "errors": errors,
                "finished_parts": count,
                "parts": parts,
            },
        )
        # Counting many shards is slow: it may take at most a twentieth of the time.
        took_s = time.monotonic() - began
        self._note_after = time.monotonic() + max(_NOTE_INTERVAL_S, 20 * took_s)
