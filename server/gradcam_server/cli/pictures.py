"""Images and masks from files, and matplotlib figures: for these the ``plot`` extra is needed."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from gradcam_client.file_types import describe
from gradcam_client.image_files import read_file

if TYPE_CHECKING:
    from PIL import Image as PillowImage

FONT = "DejaVu Sans"  # comes with matplotlib
_NEAREST, _BILINEAR = 0, 2  # Pillow's numbers: importing this module does not import Pillow


@contextmanager
def needs_plot_extra() -> Iterator[None]:
    """Raises an error that names the extra to install, if matplotlib or Pillow is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("matplotlib", "PIL"):
            raise
        raise click.ClickException(
            f"this needs {package}: pip install 'gradcam-server[plot]'"
        ) from error


def load_image(path: Path, max_side: int) -> NDArray[np.uint8]:
    """Reads an image upright, scaled down until no side is longer than ``max_side``.

    Returns:
        uint8 RGB, shape (H, W, 3).

    Raises:
        OSError: There is no such file, or it is not an image.
        ValueError: It is too large to be decoded safely, or ``path`` is a link or base64 text.
    """
    image = _open(path)
    if image.mode.startswith("I;16"):  # grey of 16 bits, which Pillow would clip to 255
        image = _from_pixels((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    size = _fit(image.size, max_side)
    return np.asarray(image if size == image.size else image.resize(size, _BILINEAR))


def load_mask(path: Path, image_path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Reads the mask of an image: non-zero pixels are the object; transparency is ignored.

    Args:
        path: The mask, as large as its image.
        image_path: The image.
        shape: (height, width) of the image after ``load_image``.

    Returns:
        bool of that shape.

    Raises:
        OSError: It is not an image.
        ValueError: It is not as large as its image.
    """
    mask, image_size = _open(path), _open(image_path).size
    if mask.size != image_size:
        raise ValueError(f"the mask {path} is {mask.size} (width, height), not {image_size}")
    if mask.mode in ("LA", "PA", "RGBA"):
        mask = mask.convert("RGB")
    marked = np.asarray(mask) != 0
    if marked.ndim == 3:
        marked = np.logical_or.reduce(marked, axis=2)
    height, width = shape[:2]
    inside = _from_pixels(marked.astype(np.uint8))
    return np.asarray(inside.resize((width, height), _NEAREST)) != 0


def decode_png(data: bytes) -> NDArray[np.uint8]:
    """Returns the pixels of a PNG file: uint8 RGB, shape (H, W, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def new_figure(width: float, height: float) -> Any:
    """Returns a matplotlib figure of a size in inches; it needs no display."""
    with needs_plot_extra():
        import matplotlib as mpl
        from matplotlib.figure import Figure
    mpl.rcParams["font.family"] = FONT
    return Figure(figsize=(width, height))


def _open(path: Path) -> "PillowImage.Image":
    with needs_plot_extra():
        from PIL import Image, ImageOps, UnidentifiedImageError
    try:
        data = read_file(path)
        with Image.open(io.BytesIO(data)) as file:
            return ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        kind = describe(data) or "not an image that Pillow can read"
        raise OSError(f"the file is {kind}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except SyntaxError as error:  # Pillow raises it for some broken PNGs
        raise OSError(str(error)) from error


def _from_pixels(pixels: NDArray[np.uint8]) -> "PillowImage.Image":
    from PIL import Image

    return Image.fromarray(pixels)


def _fit(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    scale = min(1.0, max_side / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height
