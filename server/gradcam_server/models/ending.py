"""The end of a model: where its logits are, and which activation makes probabilities of them.

Many models apply softmax or sigmoid last; their logits are the inputs of that. Others end in
logits, and some in probabilities that no single function makes, such as the mean of several
softmaxes. The three are told apart by values: by the outputs of a function for random numbers, and
by the model's answers to a few images. Names of layers and functions say too little.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.domain.options import Outputs
from gradcam_server.errors import StartupError
from gradcam_server.models.network import PROBABILITIES, OutputActivation

logger = logging.getLogger(__name__)

# Probabilities and their sums may come from a model that computes in 16 bits.
_SUM_TOLERANCE = 1e-3
_TOLERANCE = 1e-4
_TOLERANCE_16_BITS = 5e-3
# A smaller probability counts as zero: its logarithm and the derivative stay finite.
_MIN_PROBABILITY = 1e-30
_SETTING = "--outputs logits, softmax, sigmoid or probabilities"


@dataclass(frozen=True)
class Ending:
    """How logits follow from a network's outputs, and probabilities from the logits.

    Attributes:
        activation: Makes probabilities of the logits.
        holds_probabilities: Whether the outputs are probabilities. Their logits are then
            log(p), if the classes exclude each other, or else log(p / (1 - p)).
    """

    activation: OutputActivation
    holds_probabilities: bool = False

    def to_logits(self, outputs: tf.Tensor) -> tf.Tensor:
        """Computes logits.

        Args:
            outputs: float32 (B, classes).

        Returns:
            Logits, float32 (B, classes).
        """
        if not self.holds_probabilities:
            return outputs
        logits = _log(outputs)
        return logits - _log(1 - outputs) if self.activation is OutputActivation.SIGMOID else logits


def _log(probabilities: tf.Tensor) -> tf.Tensor:
    # Not tf.maximum, whose gradient OpenVINO does not convert.
    return tf.math.log(tf.nn.relu(probabilities - _MIN_PROBABILITY) + _MIN_PROBABILITY)


def activation_of(
    function: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...], dtype: str
) -> OutputActivation | None:
    """Finds out whether a function is softmax or sigmoid, or the logarithm of one of them.

    Args:
        function: Takes and returns (B, ...).
        shape: Shape of its input without the batch; a softmax must be over all of it.
        dtype: Type of its input.

    Returns:
        The activation, or None.
    """
    sample = tf.constant(np.random.default_rng(0).normal(0, 3, (4, *shape)), dtype)
    result = _try(function, sample)
    if result is None:
        return None
    logits = tf.cast(tf.reshape(sample, (4, -1)), tf.float32)
    for activation in (OutputActivation.SOFTMAX, OutputActivation.SIGMOID):
        expected = PROBABILITIES[activation](logits).numpy()
        if any(_equal(result, values, dtype) for values in (expected, np.log(expected))):
            return activation
    return None


def keeps_values(
    function: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...], dtype: str
) -> bool:
    """Finds out whether a function returns the numbers of its input, in their order.

    Args:
        function: Takes and returns (B, ...).
        shape: Shape of its input without the batch.
        dtype: Type of its input.
    """
    sample = tf.constant(np.random.default_rng(0).normal(0, 3, (4, *shape)), dtype)
    result = _try(function, sample)
    given = tf.cast(tf.reshape(sample, (4, -1)), tf.float32).numpy()
    return result is not None and _equal(result, given, dtype)


def _try(
    function: Callable[[tf.Tensor], tf.Tensor], sample: tf.Tensor
) -> NDArray[np.float32] | None:
    try:
        result = function(sample)
        return np.asarray(tf.cast(tf.reshape(result, (len(sample), -1)), tf.float32))
    except Exception:  # The function is the model author's, and may expect other numbers.
        logger.debug("%s cannot be tried alone", function, exc_info=True)
        return None


def _equal(one: NDArray[np.float32], other: NDArray[np.float32], dtype: str) -> bool:
    tolerance = _TOLERANCE if dtype in {"float32", "float64"} else _TOLERANCE_16_BITS
    return one.shape == other.shape and np.allclose(one, other, rtol=tolerance, atol=tolerance)


def run_on_probes(
    model: str,
    run: Callable[[tf.Tensor], list[tf.Tensor]],
    size: tuple[int, int],
    batch_size: int = 1,
) -> list[NDArray[np.float32]]:
    """Runs a network on a few synthetic images.

    Args:
        model: The model's name, for errors.
        run: Takes float32 (B, H, W, 3), returns tensors (B, ...).
        size: (height, width) in pixels.
        batch_size: The batch size of each run, of one image repeated.

    Returns:
        The tensors, each as float32 (images, numbers).

    Raises:
        StartupError: The network cannot be run.
    """
    # Traced, so that intermediate results are not kept.
    traced = tf.function(
        run, autograph=False, input_signature=[tf.TensorSpec((None, *size, 3), tf.float32)]
    )
    try:
        answers = [traced(np.repeat(image[None], batch_size, axis=0)) for image in _probes(size)]
    except Exception as error:
        raise StartupError(
            f"{model} cannot be run on images of {size[0]}x{size[1]}: {error}"
        ) from error
    return [
        np.stack([np.ravel(tf.cast(tensor[0], tf.float32)) for tensor in tensors])
        for tensors in zip(*answers, strict=True)
    ]


def _probes(size: tuple[int, int]) -> NDArray[np.float32]:
    """Makes images: black, noise, a colour gradient and a red half.

    Returns:
        float32 (images, H, W, 3): black, the others from 0 to 1, and the others from 0 to 255,
        since networks differ in the range that they take.
    """
    shape = (*size, 3)
    row, column = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
    noise = np.random.default_rng(0).random(shape)
    gradient = np.stack([row, column, 1 - row], axis=-1)
    half = np.where(column[..., None] < 0.5, [1, 0, 0], 0.5)
    seen = np.stack([noise, gradient, half])
    return np.concatenate([np.zeros((1, *shape)), seen, seen * 255]).astype(np.float32)


def makes(
    activation: OutputActivation,
    logits: NDArray[np.float32],
    outputs: NDArray[np.float32],
    dtype: str,
) -> bool:
    """Returns whether an activation makes a model's outputs of its presumed logits.

    Args:
        activation: The activation at the model's end.
        logits: The presumed logits, (images, classes).
        outputs: The model's outputs: probabilities or their logarithms, (images, classes).
        dtype: Type of the outputs.
    """
    probabilities = PROBABILITIES[activation](logits).numpy()
    if outputs.max() <= 0:
        return _equal(probabilities, np.exp(outputs), dtype)
    return _equal(probabilities, outputs, dtype)


def check_declared(model: str, activation: OutputActivation, declared: Outputs | None) -> None:
    """Checks a declaration against the activation that was found at a model's end.

    Raises:
        StartupError: The two contradict each other.
    """
    if declared not in {None, Outputs.PROBABILITIES, Outputs(activation.value)}:
        raise StartupError(
            f"--outputs {declared}: {model} ends in a {activation} of its own, which is found "
            "without --outputs"
        )


def judge(
    model: str, outputs: NDArray[np.float32], *, is_linear: bool, declared: Outputs | None
) -> Ending:
    """Classifies the outputs of a model that ends in no known activation.

    Args:
        model: The model's name, for the log.
        outputs: Its answers to a few images, (images, classes).
        is_linear: Whether a dense or convolutional layer without activation makes the outputs.
        declared: The kind of outputs that the model's owner declares; checked as far as possible.

    Raises:
        StartupError: The outputs cannot be of the declared kind.
    """
    if declared is not None:
        return _declared(model, outputs, declared)
    activation = usual_activation(outputs.shape[1])
    seen = f"from {outputs.min():.4g} to {outputs.max():.4g} on {len(outputs)} made images"
    if _are_distributions(outputs):
        logger.info("%s: its outputs are probabilities, and are reported as they are", model)
        return Ending(OutputActivation.EXPONENTIAL, holds_probabilities=True)
    is_mixed = outputs.min() < 0 < outputs.max()
    if is_linear or is_mixed or _are_distributions(np.exp(np.minimum(outputs, 0))):
        logger.info(
            "%s ends in neither softmax nor sigmoid: its outputs are taken for the logits of a "
            "%s (if that is wrong: %s)",
            *(model, activation, _SETTING),
        )
        return Ending(activation)
    if _are_in_unit_interval(outputs):
        logger.warning(
            "%s: it cannot be told whether its outputs (%s) are probabilities or logits. They "
            "are taken for probabilities that need not sum to 1; to be sure, say %s",
            *(model, seen, _SETTING),
        )
        return Ending(OutputActivation.SIGMOID, holds_probabilities=True)
    logger.warning(
        "%s: it cannot be told whether its outputs (%s) are logits. They are taken for the "
        "logits of a %s; to be sure, say %s",
        *(model, seen, activation, _SETTING),
    )
    return Ending(activation)


def usual_activation(class_count: int) -> OutputActivation:
    """Returns the activation of logits: a sigmoid for one logit, which is of a yes or a no."""
    return OutputActivation.SIGMOID if class_count == 1 else OutputActivation.SOFTMAX


def _declared(model: str, outputs: NDArray[np.float32], declared: Outputs) -> Ending:
    if declared is Outputs.PROBABILITIES:
        if not _are_in_unit_interval(outputs):
            raise StartupError(
                f"--outputs probabilities: the outputs of {model} are no probabilities: they are "
                f"from {outputs.min():.4g} to {outputs.max():.4g} on {len(outputs)} made images"
            )
        excluding = _are_distributions(outputs)
        activation = OutputActivation.EXPONENTIAL if excluding else OutputActivation.SIGMOID
        return Ending(activation, holds_probabilities=True)
    if _are_distributions(outputs):
        raise StartupError(
            f"--outputs {declared}: the outputs of {model} are probabilities already: none is "
            "negative, and they sum to 1; leave --outputs out, or say --outputs probabilities"
        )
    if declared is Outputs.SOFTMAX and outputs.shape[1] == 1:
        raise StartupError(
            f"--outputs softmax: {model} has one output, whose softmax is always 1; say sigmoid"
        )
    if declared is Outputs.LOGITS:
        return Ending(usual_activation(outputs.shape[1]))
    return Ending(OutputActivation(declared.value))


def _are_distributions(outputs: NDArray[np.float32]) -> bool:
    if outputs.shape[1] == 1 or not _are_in_unit_interval(outputs):
        return False
    sums = outputs.sum(axis=1, dtype=np.float64)
    return bool(np.allclose(sums, 1, rtol=0, atol=_SUM_TOLERANCE))


def _are_in_unit_interval(outputs: NDArray[np.float32]) -> bool:
    return bool((outputs >= -_TOLERANCE).all() and (outputs <= 1 + _TOLERANCE).all())
