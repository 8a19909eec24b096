"""Requests whose answers all differ, with their expected answers."""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
from numpy.typing import NDArray

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import GrayPng, OverlayJpeg, Raw, build_request
from gradcam_server.images.decode import decode_image

IMAGES = Path(__file__).resolve().parents[2] / "examples" / "images"
_RTOL = 2e-3
_KNOWN_TOP = {"cat.jpg": 285, "espresso.jpg": 967}
_OPTIONS: Sequence[dict[str, Any]] = (
    {},
    {"top_k": 3},
    {"top_k": 0},
    {"classes": [285, "espresso"], "priority": 9},
    {"heatmaps": [GrayPng(), OverlayJpeg()]},
    {"method": "hirescam", "resize": "letterbox"},
    {"method": "integrated-gradients", "passes": 4},
    {"resize": "center-crop", "heatmaps": [Raw()]},
)


@dataclass(frozen=True)
class Case:
    """A request and its expected answer.

    Attributes:
        name: A name for people.
        message: The request, serialised.
        code: The gRPC code of the answer.
        logits: If the code is OK: the logits of all classes, which no other case shares.
        explained: If the code is OK: the explained classes and the sizes of their heat maps.
    """

    name: str
    message: bytes
    code: str = "OK"
    logits: NDArray[np.float32] | None = None
    explained: tuple[tuple[int, int], ...] = ()

    @property
    def request(self) -> pb.ExplainImageRequest:
        """The request."""
        return pb.ExplainImageRequest.FromString(self.message)

    def accepts(self, response: pb.ExplainImageResponse) -> bool:
        """Returns whether a response is the expected answer."""
        logits = np.array(response.logits, np.float32)
        return (
            self.logits is not None
            and logits.shape == self.logits.shape
            and _distance(logits, self.logits) < _RTOL
            and _explained(response) == self.explained
        )


def make_cases(address: str) -> list[Case]:
    """Makes the cases; their expected answers are those of a server that is asked one by one."""
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.ExplanationServiceStub(channel)
        cases = [_expect(stub, case) for case in _good()]
    for one, other in combinations(cases, 2):
        assert one.logits is not None
        assert other.logits is not None
        assert _distance(one.logits, other.logits) > 10 * _RTOL, (one.name, other.name)
    for name, top in _KNOWN_TOP.items():
        (logits,) = (case.logits for case in cases if case.name == name)
        assert logits is not None
        assert np.argmax(logits) == top
    return [*cases, *_bad()]


def save(cases: Iterable[Case], path: Path) -> None:
    """Writes cases for another process."""
    path.write_bytes(pickle.dumps(list(cases)))


def load(path: Path) -> list[Case]:
    """Reads cases that ``save`` wrote."""
    loaded: list[Case] = pickle.loads(path.read_bytes())
    return loaded


def _good() -> list[Case]:
    photos = {path.name: path.read_bytes() for path in sorted(IMAGES.glob("*.jpg"))}
    images: dict[str, bytes | NDArray[np.uint8]] = {**photos}
    for name, data in photos.items():
        pixels = decode_image(data, max_pixels=10**7)
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        images[f"raw left of {name}"] = pixels[:, :width]
        images[f"raw top of {name}"] = pixels[:height]
        for format in ("png", "webp", "bmp"):
            images[f"{format} of {name}"] = _encode(format, pixels[::2, ::-2])
            pixels = pixels[: -pixels.shape[0] // 5]
    colors = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (10, 20, 250), "white": (255,) * 3}
    for name, color in colors.items():
        images[f"1 x 1 {name}"] = _encode("png", np.full((1, 1, 3), color, np.uint8))
    images["3 x 2 noise"] = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    return [
        Case(name, _message(image, logits=True, **_OPTIONS[number % len(_OPTIONS)]))
        for number, (name, image) in enumerate(images.items())
    ]


def _bad() -> list[Case]:
    photo = (IMAGES / "cat.jpg").read_bytes()
    short = pb.ExplainImageRequest(raw_image=pb.RawImage(data=b"123", height_px=5, width_px=5))
    invalid = {
        "cut off": _message(photo[:9000]),
        "no image": _message(b"hello"),
        "unknown class": _message(photo, classes=["no such class"]),
        "class out of range": _message(photo, classes=[1000]),
        "raw of a wrong size": short.SerializeToString(),
        "empty": b"",
    }
    missing = {
        "unknown layers": _message(photo, layers="nowhere"),
        "unknown model": _message(photo, model="nobody"),
    }
    return [
        *(Case(name, message, "INVALID_ARGUMENT") for name, message in invalid.items()),
        *(Case(name, message, "NOT_FOUND") for name, message in missing.items()),
    ]


def _message(image: bytes | NDArray[np.uint8], **options: Any) -> bytes:
    return build_request(image, **options).SerializeToString()


def _encode(format: str, pixels: NDArray[np.uint8]) -> bytes:
    encoded, data = cv2.imencode(f".{format}", pixels[..., ::-1])
    assert encoded
    return data.tobytes()


def _expect(stub: pb_grpc.ExplanationServiceStub, case: Case) -> Case:
    response = stub.ExplainImage(case.request, timeout=120)
    return replace(
        case, logits=np.array(response.logits, np.float32), explained=_explained(response)
    )


def _explained(response: pb.ExplainImageResponse) -> tuple[tuple[int, int], ...]:
    return tuple(
        (one.class_index, heatmap.height_px * heatmap.width_px)
        for one in response.explanations
        for heatmap in one.heatmaps
    )


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())
