"""Small videos for tests: the number of a frame can be read from its pixels."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

_BITS = 8


def numbered(number: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Returns a picture whose columns are the bits of a number; its upper left corner is red."""
    image = np.zeros((height, width, 3), np.uint8)
    for bit, columns in enumerate(np.array_split(np.arange(width), _BITS)):
        image[height // 2 :, columns] = 255 * (number >> bit & 1)
    image[: height // 2, : width // 2] = (230, 20, 20)
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """Reads the number of ``numbered`` from an upright picture."""
    height, width, _ = image.shape
    row = image[height * 3 // 4].mean(axis=1)
    parts = np.array_split(np.arange(width), _BITS)
    return sum(1 << bit for bit, part in enumerate(parts) if row[part].mean() > 127)


def write_video(
    path: Path,
    times_s: Sequence[float],
    *,
    rotation: int = 0,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    size: tuple[int, int] = (48, 64),
    has_sound: bool = False,
) -> Path:
    """Writes a video of numbered frames at given times; ``rotation`` is its display matrix's."""
    with av.open(str(path), "w", container_options=container_options) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if has_sound:
            write_sound(container, container.add_stream("pcm_s16le", rate=8000, layout="mono"))
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(container: OutputContainer, stream: AudioStream) -> None:
    """Writes a tenth of a second of silence, at 8 kHz in 16 bits."""
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
    sound.sample_rate = 8000
    container.mux(stream.encode(sound))
