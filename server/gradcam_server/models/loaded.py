"""A model in memory, ready to be compiled."""

from dataclasses import dataclass

from gradcam_server.domain.labels import ClassLabels
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.models.network import Network


@dataclass(frozen=True)
class LoadedModel:
    """A network and what surrounds it.

    Attributes:
        name: The name by which requests choose it.
        network: From preprocessed float32 (B, H, W, 3) to logits (B, classes).
        preprocessing: How pixels become the network's input.
        labels: The classes.
        weights: Where the weights come from, for people.
        random_weights: Whether they are random.
        device: Where the weights are, by TensorFlow's name; None is its default.
        preprocessing_declared: Whether the preprocessing was declared, or is known of a built-in
            model; else it is the default of models from files.
        scales_pixels: Whether the network scales pixels itself, as far as it can be seen.
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
