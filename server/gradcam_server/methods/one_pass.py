"""The one-pass explanation methods: from activation and gradient to a map.

Notation: activation A and gradient g = dY/dA of the score Y, shape (B, H, W, K); N = H W;
r = ReLU. A function of A and g returns the signed map before the method's final ReLU, shape
(B, H, W), float32; ``images.render`` applies the ReLU. Where the paper has the ReLU inside the
sum, no value of the map is negative. A ``Contrast`` chooses the score. ``domain.registry`` says
which of these functions make a method.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from gradcam_server.domain.registry import ONE_PASS_METHODS, REGISTRY
from gradcam_server.domain.requests import Method

Contrast = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], list[tuple[tf.Tensor, tf.Tensor]]]
"""Chooses the classes d and weights w_d of the explained score Y_c - sum_d w_d Y_d.

Takes the logits, float32, shape (B, classes); the classes c and the classes that the request
contrasts them with, int32, shape (B, targets); and 1.0 where the request does so, else 0.0, shape
(B, targets). Returns pairs of d and w_d, each of shape (B, targets). The weights are constants in
the gradient.
"""

# A sum below this share of the sum of its terms' sizes is rounding error: float32 has 6e-8.
_ROUNDING = 1e-6


def grad_cam(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Grad-CAM: sum_k w_k A_k, w_k = mean_ij g.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", ICCV 2017, equations 1 and 2.
    """
    weights = tf.reduce_mean(gradient, axis=[1, 2])
    return _weighted_sum(weights, activation)


def grad_cam_plus_plus(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Grad-CAM++: sum_k w_k A_k, w_k = sum_ij alpha r(g), Y = exp(S).

    alpha = g^2 / (2 g^2 + g^3 sum_ab A_ab), and 0 where g is 0. exp(S) cancels in alpha and
    only rescales w, so it is never evaluated: float32 overflows at S > 88.

    Chattopadhay et al., "Grad-CAM++: Generalized Gradient-Based Visual Explanations for
    Deep Convolutional Networks", WACV 2018, equations 10 and 19.
    """
    # alpha r(g) = 1 / (2 / g + sum A) where g > 0: no g^3 to underflow, no g sum A to overflow.
    positive = gradient > 0
    inverse = 2.0 / tf.where(positive, gradient, 1.0)
    total = tf.reduce_sum(activation, axis=[1, 2], keepdims=True)
    size = tf.reduce_sum(tf.abs(activation), axis=[1, 2], keepdims=True)
    terms = tf.where(positive, _divide(1.0, inverse + total, inverse + size), 0.0)
    return _weighted_sum(tf.reduce_sum(terms, axis=[1, 2]), activation)


def hires_cam(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """HiResCAM: sum_k g_k A_k, element by element.

    Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks", arXiv:2011.08891, 2020, equation 3.
    """
    return tf.reduce_sum(gradient * activation, axis=-1)


def x_grad_cam(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """XGrad-CAM: sum_k w_k A_k, w_k = sum_ij g A / sum_ij A, and 0 where sum_ij A is 0.

    After a normalisation over space every sum_ij A is 0 but for rounding, and the map is 0.

    Fu et al., "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of
    CNNs", BMVC 2020, equation 8.
    """
    total = tf.reduce_sum(activation, axis=[1, 2])
    size = tf.reduce_sum(tf.abs(activation), axis=[1, 2])
    product = tf.reduce_sum(gradient * activation, axis=[1, 2])
    return _weighted_sum(_divide(product, total, size), activation)


def layer_cam(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """LayerCAM: sum_k r(g_k) A_k, element by element.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for
    Localization", IEEE TIP 2021, equations 5 and 6.
    """
    return tf.reduce_sum(tf.nn.relu(gradient) * activation, axis=-1)


def elementwise_grad_cam(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """Element-wise Grad-CAM: sum_k r(g_k A_k).

    As ``GradCAMElementWise`` of pytorch-grad-cam: HiResCAM with the ReLU before the sum.
    """
    return tf.reduce_sum(tf.nn.relu(gradient * activation), axis=-1)


def eigen_grad_cam(activation: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
    """EigenGrad-CAM: g A, as (N, K) with centred columns, on its first right singular vector.

    The sign of a singular vector is arbitrary. Here the map's inner product with HiResCAM's,
    sum_k g_k A_k, is never negative: the map is hot where the evidence for the class is.

    As ``EigenGradCAM`` of pytorch-grad-cam, after Muhammad and Yeasin, "Eigen-CAM",
    IJCNN 2020, equation 2, on g A for A.
    """
    _, height, width, channels = activation.shape
    product = tf.reshape(gradient * activation, [-1, height * width, channels])
    centred = product - tf.reduce_mean(product, axis=1, keepdims=True)
    scale = tf.reduce_max(tf.abs(centred), axis=[1, 2], keepdims=True)
    size = tf.reduce_max(tf.abs(product), axis=[1, 2], keepdims=True)
    finite = tf.reduce_all(tf.math.is_finite(centred), axis=[1, 2], keepdims=True)
    # If only rounding error varies over space, there is no direction. If A or g is not finite,
    # TensorFlow's own eigh would raise, for all images of the batch.
    usable = tf.logical_and(finite, scale > _ROUNDING * size)
    scale = tf.where(usable, scale, 1.0)  # so that no square overflows or vanishes
    unit = tf.where(usable, centred / scale, 0.0)
    # The projection on v is sigma u: an eigenvector of the smaller of the two Gram matrices.
    if height * width <= channels:
        values, vectors = tf.linalg.eigh(tf.matmul(unit, unit, transpose_b=True))
        projected = vectors[..., -1] * tf.sqrt(tf.maximum(values[:, -1:], 0.0))
    else:
        _, vectors = tf.linalg.eigh(tf.matmul(unit, unit, transpose_a=True))
        projected = tf.linalg.matvec(unit, vectors[..., -1])
    hires = tf.reduce_sum(product / scale, axis=-1)
    agreement = tf.reduce_sum(projected * hires, axis=1, keepdims=True)
    projected = tf.where(agreement < 0, -projected, projected) * scale[..., 0]
    projected = tf.where(finite[..., 0], projected, np.nan)
    return tf.reshape(projected, [-1, height, width])


def eigen_cam(activation: tf.Tensor, _gradient: object = None) -> tf.Tensor:
    """Eigen-CAM: A, as (N, K) with centred columns, on its first right singular vector.

    This is EigenGrad-CAM with g = 1, so the map is hot where sum_k A_k is large. It is the same
    for all classes.

    Muhammad and Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN
    2020, arXiv:2008.00299, equation 2; centred as ``EigenCAM`` of pytorch-grad-cam, which leaves
    the sign to LAPACK.
    """
    return eigen_grad_cam(activation, tf.ones([]))


def requested_class(
    _logits: tf.Tensor, _classes: tf.Tensor, against: tf.Tensor, is_requested: tf.Tensor
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Y_c, or Y_c - Y_d for the class d that the request contrasts c with."""
    return [(against, is_requested)]


def similar_classes(
    logits: tf.Tensor, classes: tf.Tensor, against: tf.Tensor, is_requested: tf.Tensor
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Finer-CAM: Y_c - gamma sum_d w_d Y_d over the 3 classes d whose logits are nearest to c's.

    gamma = 0.6, and w is the softmax of the logits of these classes. A class that the request
    contrasts c with is the only d: Y_c - gamma Y_d.

    Zhang et al., "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual
    Explanation", CVPR 2025, arXiv:2501.11309, with gamma and the number of classes of their
    aggregated maps. w as in ``FinerCAM`` of pytorch-grad-cam, which also differentiates w.
    """
    own = tf.gather(logits, classes, batch_dims=1)[..., None]
    is_own = tf.one_hot(classes, logits.shape[1], on_value=True, off_value=False)
    distance = tf.where(is_own, np.inf, tf.abs(logits[:, None] - own))
    similar = tf.math.top_k(-distance, k=min(3, logits.shape[1] - 1)).indices
    similar = tf.where(is_requested[..., None] > 0, against[..., None], similar)
    weights = tf.nn.softmax(tf.gather(logits, similar, batch_dims=1))
    weights = 0.6 * tf.stop_gradient(weights)
    return list(zip(tf.unstack(similar, axis=-1), tf.unstack(weights, axis=-1), strict=True))


METHODS: dict[Method, Callable[[tf.Tensor, tf.Tensor | None], tf.Tensor]] = {
    method: globals()[REGISTRY[method].function] for method in ONE_PASS_METHODS
}
CONTRASTS: dict[Method, Contrast] = {
    method: globals()[REGISTRY[method].contrast] for method in ONE_PASS_METHODS
}


def _weighted_sum(weights: tf.Tensor, activation: tf.Tensor) -> tf.Tensor:
    _, height, width, channels = activation.shape
    # Not tf.einsum: OpenVINO broadcasts the weights over the positions for it.
    positions = tf.reshape(activation, [-1, height * width, channels])
    return tf.reshape(tf.linalg.matvec(positions, weights), [-1, height, width])


def _divide(dividend: tf.Tensor | float, divisor: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Divides, or gives 0 where the divisor is rounding error beside its terms' ``size``."""
    usable = tf.abs(divisor) > _ROUNDING * size
    return tf.where(usable, dividend / tf.where(usable, divisor, 1.0), 0.0)
