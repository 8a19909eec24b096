"""Finds cuts: frames that motion and exposure do not explain."""

import numpy as np

from gradcam_server.watch.temporal.motion import Gray, Motion

# Agreement of frames that follow each other is 0.85 and more, even with much noise; of cuts between
# photographs it is below 0.5 mostly, and below 0.7. In doubt, a histogram that changes beyond the
# exposure decides.
_CUT_AGREEMENT = 0.6
_SAME_AGREEMENT = 0.8
_CUT_HISTOGRAM = 0.18
_BINS = 32
# Of noise, in squared grey levels: flat and dark frames agree.
_NOISE_VARIANCE = 40.0
_MIN_VISIBLE = 0.05


def is_cut(motion: Motion) -> bool:
    """Returns whether a frame begins another scene.

    It does if the earlier frame, moved by the flow and with the exposure of the later one, does not
    agree with it; where the agreement leaves a doubt, if their histograms differ, too. A pan by
    less than a tenth of the width from frame to frame, a zoom by less than a third, noise and
    exposure are no cuts, nor are fades, which change little at a time.
    """
    seen = agreement(motion)
    if seen >= _SAME_AGREEMENT:
        return False
    return seen < _CUT_AGREEMENT or histogram_distance(motion.before, motion.now) > _CUT_HISTOGRAM


def agreement(motion: Motion) -> float:
    """Returns how well the moved earlier frame agrees with the later one, -1 to 1.

    It is twice the covariance over the sum of the variances, of what both frames show.
    """
    seen = motion.was_visible
    if seen.mean() < _MIN_VISIBLE:
        return 0.0
    before = motion.carry(motion.before)[seen].astype(np.float64)
    now = motion.now[seen].astype(np.float64)
    covariance = float(((before - before.mean()) * (now - now.mean())).mean())
    return (2 * covariance + _NOISE_VARIANCE) / (
        float(before.var()) + float(now.var()) + _NOISE_VARIANCE
    )


def histogram_distance(one: Gray, other: Gray) -> float:
    """Returns the share of pixels by which the histograms of two pictures differ, 0 to 1."""
    first, second = (
        np.bincount(picture.ravel() // (256 // _BINS), minlength=_BINS) / picture.size
        for picture in (one, other)
    )
    return float(np.abs(first - second).sum() / 2)
