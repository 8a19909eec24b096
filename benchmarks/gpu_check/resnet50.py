"""ResNet50's convolutions as numbers: its work, and the lower bound of its time on a device."""

from collections.abc import Iterator
from dataclasses import dataclass

INPUT_SIZE, CLASSES = 224, 1000
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
"""Blocks, channels within them, and the stride of the first block, of each stage."""


@dataclass(frozen=True)
class Product:
    """A convolution or the dense layer.

    Attributes:
        input_size: Rows and columns of its input.
        input_channels: Channels of its input.
        output_size: Rows and columns of its output.
        output_channels: Channels of its output.
        kernel_size: Rows and columns of its kernel.
    """

    input_size: int
    input_channels: int
    output_size: int
    output_channels: int
    kernel_size: int

    @property
    def weights(self) -> int:
        """The number of its weights, without the bias."""
        return self.kernel_size**2 * self.input_channels * self.output_channels

    @property
    def flop(self) -> int:
        """Its floating-point operations for an image; a multiply-add is two."""
        return 2 * self.weights * self.output_size**2

    @property
    def values(self) -> int:
        """The values that it reads and writes for an image."""
        read = self.input_size**2 * self.input_channels
        return read + self.output_size**2 * self.output_channels


def products() -> Iterator[Product]:
    """Yields the convolutions and the dense layer of ResNet50 as Keras has it.

    The stride is in a block's first 1x1 convolution.
    """
    yield Product(INPUT_SIZE, 3, 112, 64, 7)
    size, channels = 56, 64
    for blocks, width, stride in STAGES:
        for number in range(blocks):
            smaller = size // stride if number == 0 else size
            if number == 0:
                yield Product(size, channels, smaller, 4 * width, 1)
            yield Product(size, channels, smaller, width, 1)
            yield Product(smaller, width, smaller, width, 3)
            yield Product(smaller, width, smaller, 4 * width, 1)
            size, channels = smaller, 4 * width
    yield Product(1, channels, 1, CLASSES, 1)


def flop() -> int:
    """Returns the operations of one image."""
    return sum(product.flop for product in products())


def moved_bytes(batch_size: int, value_bytes: int) -> float:
    """Returns the bytes that one image moves, if all operations between are fused.

    Args:
        batch_size: Images that share one reading of the weights.
        value_bytes: Bytes of a weight or activation.
    """
    values = sum(product.values + product.weights / batch_size for product in products())
    return values * value_bytes


def max_images_per_s(
    batch_size: int, value_bytes: int, flop_per_s: float, bytes_per_s: float
) -> dict[str, float]:
    """Returns the upper bounds of the throughput, by arithmetic and by bytes.

    Args:
        batch_size: The batch size.
        value_bytes: Bytes of a weight or activation.
        flop_per_s: The device's speed in products of matrices.
        bytes_per_s: The device's speed in reading and writing memory.
    """
    return {
        "arithmetic": flop_per_s / flop(),
        "bytes": bytes_per_s / moved_bytes(batch_size, value_bytes),
    }
