"""Rectangles of images and of models' inputs."""

from dataclasses import dataclass
from typing import Self

from gradcam.v1 import explanation_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Extent:
    """A rectangle in a model's input or in an image, in its pixels; it may reach beyond.

    Attributes:
        top: Upper edge; 0 is the upper edge of the input or image.
        left: Left edge; 0 is the left edge of the input or image.
        height: Height.
        width: Width.
    """

    top: float
    left: float
    height: float
    width: float

    def scaled(self, vertically: float, horizontally: float) -> Self:
        """Returns the rectangle in pixels of another size."""
        return type(self)(
            self.top * vertically,
            self.left * horizontally,
            self.height * vertically,
            self.width * horizontally,
        )

    @classmethod
    def from_proto(cls, extent: pb.Extent) -> Self:
        """Reads the protobuf message."""
        return cls(extent.top_px, extent.left_px, extent.height_px, extent.width_px)

    @classmethod
    def of_field(cls, message: pb.Explanation | pb.Layer, field: str) -> Self | None:
        """Reads a field of a message; None if it is not set."""
        return cls.from_proto(getattr(message, field)) if message.HasField(field) else None
