"""Inputs that are nearly valid: image files and messages, changed at random."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from PIL import Image

_INTERESTING = (0, 1, 2, 3, 4, 5, 7, 8, 16, 63, 64, 65, 100, 127, 128, 255, 256, 999, 1000, 65535)
_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_NUMBERS = (0.0, 0.5, 1.0, -1.0, 1e-30, 3e38, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    *("", "m", "n", "1", "2", "last", "block/last", "early", "input", "cat", "Cardigan"),
    *("cardigan", "no such", "image", "encoded_image", "UINT8", "BYTES", "FP32", "logits"),
    *("probabilities", "heatmap", "gradcam", "scorecam", "class", "method", "layer", "priority"),
    *("timeout", "\0", "ß" * 40, "x" * 20_000, "\U0001f408", "a\nb"),
)
_MAX_DEPTH = 4


@cache
def image_files() -> tuple[bytes, ...]:
    """Returns small files of every accepted format and kind."""
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 24 * 17 * 3).reshape(24, 17, 3)
    pixels = (smooth + rng.normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    files: list[bytes] = []

    def add(image: Image.Image, format: str, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        files.append(buffer.getvalue())

    for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16"):
        add(rgb.convert("L").convert(mode) if mode == "I;16" else rgb.convert(mode), "PNG")
    add(rgb, "PNG", exif=exif, icc_profile=b"x" * 200)
    for options in ({}, {"progressive": True}, {"exif": exif}, {"restart_marker_blocks": 2}):
        add(rgb, "JPEG", **options)
    add(rgb.convert("L"), "JPEG")
    add(rgb.convert("CMYK"), "JPEG")
    add(rgb, "WEBP", exif=exif)
    add(rgb.convert("RGBA"), "WEBP", lossless=True)
    add(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)])
    for mode in ("RGB", "L", "1", "P", "RGBA"):
        add(rgb.convert(mode), "BMP")
    add(rgb, "GIF")
    add(rgb, "TIFF")
    return tuple(files)


def mutate_image(data: bytes, rng: random.Random) -> bytes:
    """Changes a file in one to four places; PNG checksums are often made right again."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_CHANGES)(data, rng)
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        data = _with_checksums(data)
    return data


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 40))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite_number(data: bytes, rng: random.Random) -> bytes:
    """Writes an extreme 16- or 32-bit number, in the header as often as behind it."""
    form = rng.choice(("<I", ">I", "<H", ">H"))
    high = 2 ** (8 * struct.calcsize(form)) - 1
    number = rng.choice((0, 1, 255, 32768, 65535, high // 2, high // 2 + 1, high - 1, high))
    at = rng.randrange(min(64, len(data)) + 1 if rng.random() < 0.5 else len(data) + 1)
    return data[:at] + struct.pack(form, min(number, high)) + data[at + struct.calcsize(form) :]


def _splice(data: bytes, rng: random.Random) -> bytes:
    other = rng.choice(image_files())
    begin, end = sorted(rng.randrange(len(other) + 1) for _ in range(2))
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[begin:end] + data[at + rng.choice((0, end - begin)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[begin:end] * rng.choice((0, 2, 5)) + data[end:]


def _exif(data: bytes, rng: random.Random) -> bytes:
    """Puts EXIF data in a JPEG: an orientation, valid or not, or garbage."""
    order = rng.choice((b"II*\0", b"MM\0*"))
    form = "<" if order[:2] == b"II" else ">"
    entry = struct.pack(
        form + "HHIHH", 0x0112, rng.randrange(14), rng.choice((1, 0, 2**32 - 1)), 0, 0
    )
    orientation = struct.pack(form + "H", rng.choice((0, 1, 3, 6, 8, 9, 65535)))
    tiff = order + struct.pack(form + "IH", rng.choice((8, 0, 9999)), rng.choice((1, 0, 65535)))
    tiff += entry[:8] + orientation + entry[10:] + rng.randbytes(rng.randrange(9))
    segment = b"Exif\0\0" + tiff
    length = len(segment) + 2 if rng.random() < 0.8 else rng.randrange(65536)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", length) + segment + data[2:]


def _random_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(64)) + data[at + rng.randrange(64) :]


_CHANGES: Sequence[Callable[[bytes, random.Random], bytes]] = (
    *(_truncate, _flip, _flip, _overwrite_number, _overwrite_number, _splice, _repeat, _exif),
    _random_bytes,
)


def _with_checksums(data: bytes) -> bytes:
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        parts += [data[at : at + 4], kind, body, struct.pack(">I", zlib.crc32(kind + body))]
        at += 12 + length
    return b"".join(parts) + data[at:]


def mutate_message(message: Message, rng: random.Random) -> None:
    """Sets, clears, adds or changes one to three fields, at any depth."""
    for _ in range(rng.randint(1, 3)):
        _change(message, rng, 0)


def random_message(message: Message, rng: random.Random) -> None:
    """Sets about half of the fields."""
    _fill(message, rng, 0)


def _fields(message: Message) -> list[FieldDescriptor]:
    return list(cast("Any", message.DESCRIPTOR.fields))


def _fill(message: Message, rng: random.Random, depth: int) -> None:
    for field in _fields(message):
        if rng.random() < 0.5:
            _set(message, field, rng, depth)
    _make_consistent(message, rng)


def _change(message: Message, rng: random.Random, depth: int) -> None:
    fields = _fields(message)
    if not fields:
        return
    field = rng.choice(fields)
    if rng.random() < 0.2:
        message.ClearField(field.name)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE and not _is_map(field):
        found = getattr(message, field.name)
        inner = rng.choice(found) if field.is_repeated and found else None
        if inner is None and not field.is_repeated and message.HasField(field.name):
            inner = found
        if inner is None:
            _set(message, field, rng, depth)
        else:
            _change(inner, rng, depth + 1)
    else:
        _set(message, field, rng, depth)
    _make_consistent(message, rng)


def _set(message: Message, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    if depth > _MAX_DEPTH:
        return
    found = getattr(message, field.name)
    if _is_map(field):
        value = cast("Any", field.message_type).fields_by_name["value"]
        key = rng.choice(_WORDS)
        if value.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            _fill(found[key], rng, depth + 1)
        else:
            found[key] = _scalar(value, rng)
    elif field.is_repeated:
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                _fill(found.add(), rng, depth + 1)
            else:
                found.append(_scalar(field, rng))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        found.SetInParent()
        _fill(found, rng, depth + 1)
    else:
        setattr(message, field.name, _scalar(field, rng))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        # Mostly a known value; an open enum takes any.
        return rng.choice((*range(11), *range(11), -1, 99, 2**31 - 1))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_NUMBERS)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return _bytes(rng)
        return rng.choice(_WORDS)
    low, high = _LIMITS[kind]
    return max(low, rng.choice((*_INTERESTING, *_INTERESTING, -1, low, high)))


def _bytes(rng: random.Random) -> bytes:
    data = rng.choice(image_files())
    match rng.randrange(4):
        case 0:
            return data
        case 1:
            return mutate_image(data, rng)
        case 2:
            return len(data).to_bytes(4, "little") + data
        case _:
            return rng.randbytes(rng.choice(_INTERESTING))


def _make_consistent(message: Message, rng: random.Random) -> None:
    """Often gives raw pixels the right number of bytes, as random sizes hardly ever match."""
    if rng.random() < 0.3:
        return
    match message.DESCRIPTOR.name:
        case "RawImage":
            height, width = rng.choice(_INTERESTING[1:12]), rng.choice(_INTERESTING[1:12])
            message.height_px, message.width_px = height, width  # type: ignore[attr-defined]
            message.data = rng.randbytes(height * width * 3)  # type: ignore[attr-defined]
        case "ExplainImageRequest":
            _one_image(message, rng)
        case "ModelInferRequest":
            _one_input(message, rng)


def _one_image(message: Any, rng: random.Random) -> None:
    """Keeps three fields and sets the others to valid values."""
    kept = rng.sample(_fields(message), 3)
    changed = type(message)()
    changed.CopyFrom(message)
    message.Clear()
    message.encoded_image = rng.choice(image_files())
    message.top_k = rng.randrange(6)
    message.method = rng.randrange(10)
    if message.method >= 8:  # of many passes
        message.pass_count = rng.randint(1, 6)
    message.heatmaps.add(format=rng.randint(1, 5))
    for field in kept:
        source = type(message)()
        source.CopyFrom(changed)
        for other in _fields(message):
            if other.name != field.name:
                source.ClearField(other.name)
        message.MergeFrom(source)


def _one_input(message: Any, rng: random.Random) -> None:
    message.ClearField("inputs")
    message.ClearField("raw_input_contents")
    message.model_name = rng.choice(("", "m"))
    message.model_version = ""
    count = rng.choice((1, 1, 2, 3))
    if rng.random() < 0.5:
        height, width = rng.randint(1, 9), rng.randint(1, 9)
        message.inputs.add(name="image", datatype="UINT8", shape=[count, height, width, 3])
        data = rng.randbytes(count * height * width * 3)
    else:
        message.inputs.add(name="encoded_image", datatype="BYTES", shape=[count])
        files = [rng.choice(image_files()) for _ in range(count)]
        data = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    message.raw_input_contents.append(data if rng.random() < 0.9 else data[:-1])
    if rng.random() < 0.7:
        message.ClearField("outputs")
        message.ClearField("parameters")
