"""The one-pass methods in NumPy float64, loop by loop, from the papers' equations.

Written without a look at ``gradcam_server.methods.one_pass``. Each takes one example's activation A
and gradient g, shape (H, W, K), and returns the signed map before the method's final ReLU.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradcam_server.domain.requests import Method

Floats = NDArray[np.float64]
Reference = Callable[[Floats, Floats], Floats]


def relu(values: Floats) -> Floats:
    return np.maximum(values, 0.0)


def grad_cam(A: Floats, g: Floats) -> Floats:
    """Selvaraju et al. 2017, equations 1 and 2."""
    total = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        total += g[:, :, k].mean() * A[:, :, k]
    return total


def grad_cam_plus_plus(A: Floats, g: Floats) -> Floats:
    """Chattopadhay et al. 2018, equations 10 and 19; alpha is 0 where g is."""
    total = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        at = g[:, :, k]
        seen = at != 0
        alpha = np.zeros_like(at)
        alpha[seen] = at[seen] ** 2 / (2 * at[seen] ** 2 + at[seen] ** 3 * A[:, :, k].sum())
        total += (alpha * relu(at)).sum() * A[:, :, k]
    return total


def hires_cam(A: Floats, g: Floats) -> Floats:
    """Draelos and Carin 2020, equation 3."""
    total = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        total += g[:, :, k] * A[:, :, k]
    return total


def x_grad_cam(A: Floats, g: Floats) -> Floats:
    """Fu et al. 2020, equation 8; a channel that sums to 0 has no weight."""
    total = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        mass = A[:, :, k].sum()
        if mass != 0:
            total += (g[:, :, k] * A[:, :, k] / mass).sum() * A[:, :, k]
    return total


def layer_cam(A: Floats, g: Floats) -> Floats:
    """Jiang et al. 2021, equations 5 and 6."""
    total = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        total += relu(g[:, :, k]) * A[:, :, k]
    return total


def elementwise_grad_cam(A: Floats, g: Floats) -> Floats:
    """The ReLU before the sum."""
    total = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        total += relu(g[:, :, k] * A[:, :, k])
    return total


def eigen_grad_cam(A: Floats, g: Floats) -> Floats:
    """The first principal component of g A, by a full SVD; towards HiResCAM's map."""
    points = (g * A).reshape(-1, A.shape[2])
    centred = points - points.mean(axis=0)
    _, _, right = np.linalg.svd(centred)
    projected = (centred @ right[0]).reshape(A.shape[:2])
    return -projected if (projected * hires_cam(A, g)).sum() < 0 else projected


def eigen_cam(A: Floats, _: Floats) -> Floats:
    """The first principal component of A, by a full SVD; towards where A is strong."""
    points = A.reshape(-1, A.shape[2])
    centred = points - points.mean(axis=0)
    _, _, right = np.linalg.svd(centred)
    projected = centred @ right[0]
    if projected @ points.sum(axis=1) < 0:
        projected = -projected
    return projected.reshape(A.shape[:2])


REFERENCES: dict[Method, Reference] = {
    Method.GRAD_CAM: grad_cam,
    Method.GRAD_CAM_PLUS_PLUS: grad_cam_plus_plus,
    Method.HIRES_CAM: hires_cam,
    Method.X_GRAD_CAM: x_grad_cam,
    Method.LAYER_CAM: layer_cam,
    Method.ELEMENTWISE_GRAD_CAM: elementwise_grad_cam,
    Method.EIGEN_GRAD_CAM: eigen_grad_cam,
    Method.FINER_CAM: grad_cam,
    Method.EIGEN_CAM: eigen_cam,
}


def finer_cam(z: Floats, c: int) -> Floats:
    """Zhang et al. 2025: the class, less 0.6 times the mean of the three nearest logits.

    The mean is weighted by the probabilities.
    """
    others = sorted((d for d in range(len(z)) if d != c), key=lambda d: abs(z[d] - z[c]))[:3]
    probabilities = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    counts = np.zeros(len(z))
    counts[c] = 1
    for d in others:
        counts[d] = -0.6 * probabilities[d] / probabilities[others].sum()
    return counts


# Coefficients of the scores, (classes,), of methods that do not explain the target's score alone.
CONTRASTS: dict[Method, Callable[[Floats, int], Floats]] = {Method.FINER_CAM: finer_cam}


def coefficients(method: Method, logits: NDArray[np.generic], index: int) -> Floats:
    """The coefficients of all scores, (classes,), in the explained score of a class."""
    contrast = CONTRASTS.get(method, lambda z, c: np.eye(len(z))[c])
    return contrast(np.asarray(logits, float), index)


def reference(method: Method, activations: NDArray[np.generic], gradients: object) -> Floats:
    """The maps of a batch, (B, H, W, K) -> (B, H, W)."""
    batch = zip(np.asarray(activations, float), np.asarray(gradients, float), strict=True)
    return np.stack([REFERENCES[method](A, g) for A, g in batch])
