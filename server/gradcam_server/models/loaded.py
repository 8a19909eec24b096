"""The loaded model, ready to be compiled."""

from dataclasses import dataclass

from gradcam_server.domain.labels import ClassLabels
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.models.network import Network


@dataclass(frozen=True)
class LoadedModel:
    """A network, its preprocessing and its labels.

    Attributes:
        name: The name by which requests choose it.
        network: From preprocessed float32 (B, H, W, 3) to logits (B, classes).
        preprocessing: How pixels become the network's input.
        labels: The classes.
        weights: The origin of the weights, in words.
        random_weights: Whether they are random.
        device: TensorFlow's name of the device of the weights; None for its default.
        preprocessing_declared: Whether the preprocessing was declared, or the model is built in;
            else the preprocessing is the default of models from files.
        scales_pixels: Whether the network scales pixels itself, as far as can be seen.
    """

    name: str
    network: Network
    preprocessing: Preprocessing
    labels: ClassLabels
    weights: str
    random_weights: bool = False
    device: str | None = None
    preprocessing_declared: bool = True
    scales_pixels: bool = True

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.network.input_size
