"""Writes one JSON object a line, for each frame or file."""

import base64
import json
import math
import sys
from typing import IO, Any

import numpy as np

from gradcam_client.results import Explanation
from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.frames import FrameResult
from gradcam_server.watch.outputs.explained import explanation_of
from gradcam_server.watch.outputs.unread import discard

# The dtype of maps, in NumPy's words: little-endian float32.
_MAP_DTYPE = "<f4"


class JsonLines:
    """Writes JSON lines, each at once.

    A reader that is gone raises ``BrokenPipeError``, which ends a command quietly.

    Args:
        file: Where they go; None is stdout.
        with_maps: Whether each line holds the raw map.

    Attributes:
        at_risk: What may be incomplete if the process ends at once.

    Raises:
        OutputError: stdout is closed.
    """

    at_risk = "--json (its last line)"

    def __init__(self, file: IO[str] | None = None, *, with_maps: bool = False) -> None:
        file = file or sys.stdout
        if file is None:  # as Python has it if the shell closed it (>&-)
            raise OutputError("--json: stdout is closed; leave it open, or redirect it to a file")
        self._file = file
        self._with_maps = with_maps

    def write(self, result: FrameResult) -> None:
        """Writes a result.

        Raises:
            BrokenPipeError: The reader is gone.
            OutputError: The line cannot be written, such as to a full disk.
        """
        values = as_json(result, with_maps=self._with_maps)
        line = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._file.write(line)
            self._file.flush()
        except BrokenPipeError:
            discard(self._file)
            raise
        except OSError as error:
            discard(self._file)
            raise OutputError(
                f"--json: stdout cannot be written ({error.strerror or error})"
            ) from error

    def close(self) -> None:
        """Leaves the file open: the command may print more."""


def as_json(result: FrameResult, *, with_maps: bool = False) -> dict[str, Any]:
    """Returns a result as JSON values: null where a number is not finite or nothing is known.

    Args:
        result: The result.
        with_maps: Whether to add ``map``: the method's map of the target, before it is smoothed,
            as ``shape`` [rows, columns], ``dtype`` "<f4" (little-endian float32) and ``base64``,
            the values row by row; and ``extent``: the part of the image that it covers, in pixels.
    """
    frame, explanation = result.frame, explanation_of(result)
    answer = result.explanation
    height, width = frame.image.shape[:2]
    values: dict[str, Any] = {
        "source": frame.source,
        "number": frame.number,
        "time_s": _number(frame.time_s, 6),
        "path": None if frame.path is None else str(frame.path),
        "status": str(result.status),
        "error": result.error or None,
        "predictions": [
            {
                "index": best.index,
                "name": best.name,
                "probability": _number(best.probability, 7),
            }
            for best in (answer.predictions if answer else ())
        ],
        "target": result.target or None,
        "target_index": explanation and explanation.index,
        "score": explanation and _number(explanation.score, 6),
        "lag_ms": _number(1e3 * result.lag_s, 3),
        "model": answer and answer.model,
        "layer": explanation and explanation.layer,
        "method": explanation and explanation.method,
        "width": width,
        "height": height,
    }
    if with_maps:
        values |= _map_of(explanation)
    return values


def _map_of(explanation: Explanation | None) -> dict[str, Any]:
    if explanation is None:
        return {"map": None, "extent": None}
    extent = explanation.image_extent
    sides = ("top", "left", "height", "width")
    values = np.asarray(explanation.heatmap, _MAP_DTYPE)
    return {
        "map": {
            "shape": list(values.shape),
            "dtype": _MAP_DTYPE,
            "base64": base64.b64encode(values.tobytes()).decode(),
        },
        "extent": extent and {side: _number(getattr(extent, side), 3) for side in sides},
    }


def _number(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
