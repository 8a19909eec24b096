"""Smooths maps over time, with the motion of the scene, on a scale that does not flicker."""

import math

import cv2
import numpy as np

from gradcam_server.watch.temporal.motion import Map, Motion


class MapSmoother:
    """The exponential mean of the maps of one class, each moved to where its scene is now.

    A frame's map replaces the part 1 - exp(-dt / time_constant_s) of the mean, so that the result
    depends on time, not on the rate of frames. What was outside of the earlier frame takes the new
    map alone. Maps come in the unit of the score; the mean is divided by its maximum, which is
    smoothed in the same way, so that the brightness does not flicker either.

    Args:
        time_constant_s: In seconds; 0 smooths nothing.

    Raises:
        ValueError: ``time_constant_s`` is negative.
    """

    def __init__(self, time_constant_s: float = 0.5) -> None:
        if not time_constant_s >= 0:
            raise ValueError(f"a time constant is 0 or more seconds, not {time_constant_s}")
        self._time_constant_s = time_constant_s
        self._mean: Map | None = None
        self._scale = 0.0
        self._time_s = 0.0

    def update(self, motion: Motion | None, raw: Map, time_s: float) -> Map:
        """Takes the map of the next frame.

        Args:
            motion: From the last frame to this one; None starts afresh.
            raw: The map: float32 (h, w), >= 0, in the unit of the score.
            time_s: The time of the frame in seconds.

        Returns:
            The smoothed map: float32 of the size of the motion's frames, 0 to 1; of the size of
            ``raw`` if there is no motion.
        """
        passed_s = max(0.0, time_s - self._time_s)
        self._time_s = time_s
        if motion is None or self._mean is None:
            return self._start(raw)
        height, width = motion.now.shape
        new = _enlarge(raw, height, width)
        moved = motion.carry(_enlarge(self._mean, height, width))
        weight = 1 - math.exp(-passed_s / self._time_constant_s) if self._time_constant_s else 1.0
        self._mean = np.where(motion.was_visible, moved + np.float32(weight) * (new - moved), new)
        self._scale += weight * (float(self._mean.max()) - self._scale)
        return self._scaled(self._mean)

    def reset(self) -> None:
        """Forgets all maps: at a cut, and when the class changes."""
        self._mean, self._scale = None, 0.0

    def _start(self, raw: Map) -> Map:
        self._mean, self._scale = raw.astype(np.float32), float(raw.max())
        return self._scaled(self._mean)

    def _scaled(self, mean: Map) -> Map:
        if not self._scale > 0:
            return np.zeros_like(mean)
        return np.clip(mean / np.float32(self._scale), 0, 1)


def _enlarge(values: Map, height: int, width: int) -> Map:
    """Resizes a map with half-pixel centres, as the server does."""
    resized: Map = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized
