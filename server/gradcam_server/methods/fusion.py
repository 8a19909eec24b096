"""Fusion of the maps of several layers into one."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

# Jiang et al. multiply the maps of shallow layers, whose values cluster near zero, by this factor.
_GAMMA = 2.0


def fuse_layer_cam(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Fuses maps of several layers, as LayerCAM does.

    The ReLU of each map is divided by its maximum; tanh(2 M) raises the maps M that are finer
    than the coarsest; all maps are enlarged to the finest resolution (bilinear, half-pixel
    centres); the result is their maximum at each position.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for
    Localization", IEEE TIP 2021, sections III-C and IV-A.

    Args:
        maps: The map of each layer before its ReLU, float32, shape (h, w).

    Returns:
        float32, of the shape of the finest map, 0 to 1; zero where no map is positive.
    """
    coarsest = min(signed_map.size for signed_map in maps)
    height, width = max((signed_map.shape for signed_map in maps), key=np.prod)
    fused = np.zeros((height, width), np.float32)
    for signed_map in maps:
        positive = np.maximum(signed_map, np.float32(0))
        maximum = positive.max()
        if not maximum > 0 or not np.isfinite(maximum):
            continue
        scaled = positive / maximum
        if signed_map.size > coarsest:
            scaled = np.tanh(_GAMMA * scaled)
        enlarged = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
        fused = np.maximum(fused, enlarged)
    return fused
