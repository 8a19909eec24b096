"""One map from those of several layers."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

# Jiang et al. scale the maps of shallow layers, whose values cluster near zero, by this.
_GAMMA = 2.0


def fuse_layer_cam(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Fuses maps of several layers, as LayerCAM does.

    Each map is cut at zero and divided by its maximum; tanh(2 M) lifts all but those of
    the coarsest resolution; all are enlarged to the finest (bilinear, half-pixel
    centres); the greatest value at each position remains.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for
    Localization", IEEE TIP 2021, sections III-C and IV-A.

    Args:
        maps: For each layer, before its ReLU, float32, shape (h, w).

    Returns:
        float32, of the finest shape, 0 to 1; zero where no map is positive.
    """
    coarsest = min(one.size for one in maps)
    height, width = max((one.shape for one in maps), key=np.prod)
    fused = np.zeros((height, width), np.float32)
    for one in maps:
        positive = np.maximum(one, np.float32(0))
        greatest = positive.max()
        if not greatest > 0 or not np.isfinite(greatest):
            continue
        scaled = positive / greatest
        if one.size > coarsest:
            scaled = np.tanh(_GAMMA * scaled)
        enlarged = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
        fused = np.maximum(fused, enlarged)
    return fused
