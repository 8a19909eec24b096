"""The options of a job's explanations: the same for all images, whatever explains them."""

from dataclasses import dataclass

HEATMAP_TYPES = ("float16", "uint8")


@dataclass(frozen=True)
class ExplainOptions:
    """How each image is explained.

    Attributes:
        target: The class to explain, an index or a name; None is each image's best class.
        top_k: How many predictions to keep.
        method: A key of ``gradcam_client.requests.METHODS``.
        layer: The layer to explain; empty is the model's default.
        resize: A key of ``RESIZE_MODES``.
        heatmap: The type in which heat maps are stored: one of ``HEATMAP_TYPES``.
        overlays: Whether to write a JPEG of each image with its heat map over it.
    """

    target: int | str | None = None
    top_k: int = 5
    method: str = "gradcam"
    layer: str = ""
    resize: str = "stretch"
    heatmap: str = "float16"
    overlays: bool = False
