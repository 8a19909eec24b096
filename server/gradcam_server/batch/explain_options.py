"""What a job asks of each image: the same for all of them, wherever they are explained."""

from dataclasses import asdict, dataclass
from typing import Any

HEATMAP_TYPES = ("float16", "uint8")


@dataclass(frozen=True)
class ExplainOptions:
    """What is asked of each image.

    Attributes:
        target: The class to explain, an index or a name; None is the best one.
        top_k: How many predictions to keep.
        method: A key of ``gradcam_client.requests.METHODS``.
        layer: The layer to explain; empty is the model's default.
        resize: A key of ``RESIZE_MODES``.
        heatmap: How heat maps are kept: one of ``HEATMAP_TYPES``.
        overlays: Whether to make a JPEG of each image with its heat map over it.
    """

    target: int | str | None = None
    top_k: int = 5
    method: str = "gradcam"
    layer: str = ""
    resize: str = "stretch"
    heatmap: str = "float16"
    overlays: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON can hold it."""
        return asdict(self)
