"""Measures CPU seconds and memory to decode the most expensive images that a server accepts.

Each image has the maximum number of pixels by the default settings, and is expensive to decode: it
has the maximum number of scans, the slowest filter or the widest samples. Each is decoded alone, in
a process of its own, on one thread. They are compared with a baseline JPEG of 31 MiB.

Usage: python benchmarks/decode_worst.py [--output FILE]
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import resource
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.progress import track

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import InvalidRequestError
from gradcam_server.images.decode import decode_image

MAX_PIXELS = ServeConfig().max_image_pixels
SIDE = int(MAX_PIXELS**0.5)
MAX_SCANS = 20
MIB = 1 << 20
CONTEXT = multiprocessing.get_context("fork")


def noise(amplitude: int, channels: int = 3) -> Image.Image:
    """Makes a smooth image with so much noise that its file is about as large as a message."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (SIDE // 8 + 1, SIDE // 8 + 1, channels), np.uint8)
    pixels = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.int16)
    pixels += random.integers(-amplitude, amplitude + 1, (SIDE, SIDE, 1), np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(amplitude: int, format: str, channels: int = 3, **options: object) -> bytes:
    """Encodes an image of ``noise``."""
    buffer = io.BytesIO()
    noise(amplitude, channels).save(buffer, format, **options)
    return buffer.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """Returns a segment of a JPEG."""
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content


def jpeg_of_scans(frame: int, scan: Callable[[int], tuple[bytes, bytes]]) -> bytes:
    """Returns a progressive JPEG whose scans hold almost no data.

    Args:
        frame: The marker of its frame: Huffman or arithmetic codes.
        scan: Returns the header of a scan and its data.
    """
    one_code = bytes([1] + [0] * 15)  # a single code of one bit
    size = struct.pack(">BHHB", 8, SIDE, SIDE, 3)
    return b"".join(
        [
            b"\xff\xd8" + segment(0xDB, bytes([0] + [1] * 64)),
            segment(frame, size + b"".join(bytes((component, 0x11, 0)) for component in (1, 2, 3))),
            segment(0xC4, b"\x00" + one_code + b"\x00"),  # no difference of DC
            segment(0xC4, b"\x10" + one_code + b"\xe0"),  # no AC in 2 ** 14 blocks or more
            *(
                segment(0xDA, header) + data
                for header, data in (scan(number) for number in range(MAX_SCANS))
            ),
            b"\xff\xd9",
        ]
    )


def blocks() -> int:
    """Returns the number of blocks of each component."""
    return (-(-SIDE // 8)) ** 2


def dc_scan(_: int) -> tuple[bytes, bytes]:
    """Returns a scan of the DC coefficients of all components."""
    return bytes((3, 1, 0, 2, 0, 3, 0, 0, 0, 1)), bytes(3 * blocks() // 8 + 1)


def refinement(number: int) -> tuple[bytes, bytes]:
    """Returns a scan that refines the AC coefficients of a component; the first scan is of DC."""
    if not number:
        return dc_scan(0)
    bits = ("0" + "1" * 14) * (blocks() // (2**15 - 1) + 1)
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8))
    header = bytes((1, number % 3 + 1, 0, 1, 63, 0x10))
    return header, data.replace(b"\xff", b"\xff\0")


def arithmetic(number: int) -> tuple[bytes, bytes]:
    """Returns such a scan in random arithmetic codes."""
    data = np.random.default_rng(number).integers(0, 255, 3 * MIB // 2, np.uint8).tobytes()
    return refinement(number)[0], data


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    checksum = zlib.crc32(kind + content).to_bytes(4)
    return len(content).to_bytes(4) + kind + content + checksum


def png(side: int, *, frames: int = 0, texts: int = 0) -> bytes:
    """Returns a PNG of 16-bit RGBA with the Paeth filter; with ``frames`` an animation."""
    rows = zlib.compress((b"\4" + bytes(8 * side)) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    parts += [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(7_900_000)))] * texts
    if frames:
        parts.append(chunk(b"acTL", struct.pack(">II", frames, 0)))
    for number in range(frames):
        region = struct.pack(">IIIIHHBB", side, side, 0, 0, 1, 10, 0, 0)
        parts.append(chunk(b"fcTL", (2 * number).to_bytes(4) + region))
        if number:
            parts.append(chunk(b"fdAT", (2 * number - 1).to_bytes(4) + rows))
        else:
            parts.append(chunk(b"IDAT", rows))
    if not frames:
        parts.append(chunk(b"IDAT", rows))
    return b"".join([*parts, chunk(b"IEND", b"")])


def bmp() -> bytes:
    """Returns a run-length encoded BMP with runs of one pixel."""
    palette = bytes(1024)
    start, runs = 54 + len(palette), b"\1\1" * (15 * MIB) + b"\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + info + palette + runs


CASES: dict[str, Callable[[], bytes]] = {
    "JPEG, baseline, 4:4:4": lambda: encoded(12, "JPEG", quality=90, subsampling=0),
    "JPEG, progressive, 10 scans": lambda: encoded(
        12, "JPEG", quality=90, subsampling=0, progressive=True
    ),
    "JPEG, progressive, 20 scans of DC": lambda: jpeg_of_scans(0xC2, dc_scan),
    "JPEG, progressive, 20 refinements": lambda: jpeg_of_scans(0xC2, refinement),
    "JPEG, progressive, arithmetic codes": lambda: jpeg_of_scans(0xCA, arithmetic),
    "PNG, 16-bit RGBA": lambda: png(SIDE),
    "PNG, 64 compressed texts of 8 MB": lambda: png(8, texts=64),
    "PNG, animated, a quarter of the pixels": lambda: png(SIDE // 2, frames=3),
    "WebP, lossy with alpha": lambda: encoded(2, "WEBP", 4, quality=60, method=0),
    "BMP, run lengths": bmp,
}


def measure(name: str) -> dict[str, Any]:
    """Decodes one image, in a process of its own: the peak memory is that of the process."""
    parent, child = CONTEXT.Pipe()
    writer = CONTEXT.Process(target=lambda: child.send_bytes(CASES[name]()))
    writer.start()  # encodes in another process, to leave out its memory
    data = parent.recv_bytes()
    writer.join()
    cv2.setNumThreads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with suppress(InvalidRequestError):  # the image is found to be corrupt after the work
        decode_image(data, MAX_PIXELS)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "image": name,
        "file_mib": round(len(data) / MIB, 2),
        "cpu_s": round(seconds, 2),
        "memory_mib": round((peak - before) / 1024),
    }


def main() -> None:
    """Measures all images, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "decode_worst.json"
    )
    output = parser.parse_args().output
    results = []
    for name in track(CASES, "Decoding"):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=lambda to=sender, case=name: to.send(measure(case)))
        process.start()
        results.append(receiver.recv())
        process.join()
    document = {
        "max_image_pixels": MAX_PIXELS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"opencv": cv2.__version__},
        "results": results,
    }
    output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    for result in results:
        print(*result.values(), sep="\t")


if __name__ == "__main__":
    main()
