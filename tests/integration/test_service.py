"""The gRPC service, through a real server process."""

import io
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from PIL import Image

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import (
    Client,
    GradCamError,
    GrayPng,
    ImageArray,
    ImageExplanation,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    OverlayJpeg,
    OverlayPng,
    Raw,
)
from gradcam_client.requests import ResizeName
from gradcam_server.cli.local import LocalClient
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler
from support.server import RunningServer, quick, serving
from support.small_model import CLASSES, SIZE, build_network
from support.xla_exports import serving_xla

# Stated in docs/architecture.md: float32, in batches of other sizes.
RTOL, ATOL = 1e-3, 1e-4


@pytest.fixture(scope="module", params=["openvino", "xla"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A warm server of a trained model's export, for OpenVINO or for XLA.

    The server of OpenVINO's has a small network, too, which TensorFlow's XLA compiles. XLA may log
    each compilation: its own witness beside our counter.
    """
    if request.param == "xla":
        with serving_xla() as running:
            yield running
        return
    small = tmp_path_factory.mktemp("model") / "small.keras"
    build_network().save(small)
    with serving(
        *(*quick(), "--model", f"small={small}", "--preprocessing", "small=lite"),
        *("--compiler", "xla"),
        TF_CPP_MIN_LOG_LEVEL="0",
        TF_CPP_VMODULE="device_compiler=1",
    ) as running:
        yield running


with_small = pytest.mark.parametrize("server", ["openvino"], indirect=True)
"""Marks a test that asks for the small network."""


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def compilations(server: RunningServer) -> int:
    """How often XLA itself says that it compiled."""
    return server.text.count("Compilation of XLA executable time")


def assert_same(actual: ImageExplanation, expected: ImageExplanation) -> None:
    """Asserts that two answers for one image agree within the stated tolerance."""
    assert [p.index for p in actual.predictions] == [p.index for p in expected.predictions]
    assert len(actual.explanations) == len(expected.explanations)
    for one, other in zip(actual.explanations, expected.explanations, strict=True):
        assert (one.index, one.name, one.layer) == (other.index, other.name, other.layer)
        scale = float(np.abs(other.heatmap).max())
        np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=RTOL, atol=ATOL * scale)
        assert one.score == pytest.approx(other.score, rel=RTOL, abs=ATOL)


@pytest.mark.parametrize(("name", "index"), [("cat", 285), ("espresso", 967)])
def test_photographs_are_recognised(client: Client, images: Path, name: str, index: int) -> None:
    """With trained weights the best classes are right."""
    result = client.explain(images / f"{name}.jpg")
    assert result.top.index == index
    assert result.top.probability > 0.5
    assert result.predictions == tuple(sorted(result.predictions, key=lambda one: -one.probability))
    (explanation,) = result.explanations
    assert explanation.index == index
    assert explanation.heatmap.shape == (7, 7)
    assert explanation.raw_max == pytest.approx(explanation.heatmap.max())
    assert not explanation.degenerate


def test_an_answer_that_may_take_too_much_memory_is_refused(client: Client) -> None:
    """Five overlays of 40 megapixels as PNG and JPEG are too much, and are not computed."""
    image = cv2.imencode(".png", np.zeros((5000, 8000, 3), np.uint8))[1].tobytes()
    said = "1,200,000,000 bytes; .* 536,870,912 here"
    with pytest.raises(InvalidRequestError, match=said) as got:
        client.explain(image, top_k=5, heatmaps=[OverlayPng(), OverlayJpeg()])
    assert got.value.field == "heatmaps"
    result = client.explain(image, top_k=5, heatmaps=[Raw()])  # small, whatever the image
    assert len(result.explanations) == 5


def test_the_heat_lies_on_the_object(client: Client, images: Path) -> None:
    """The hottest point is on the cat's head and in the cup, not in the background."""
    boxes = {"cat": (40, 20, 360, 270), "espresso": (190, 10, 520, 320)}  # left, top, right, bottom
    for name, (left, top, right, bottom) in boxes.items():
        result = client.explain(images / f"{name}.jpg", heatmaps=[ImageArray()])
        heat = result.explanations[0].heatmaps[0].array
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        assert left < column < right, name
        assert top < row < bottom, name
        inside = heat[top:bottom, left:right].sum() / heat.sum()
        assert inside > 0.7, name


def test_every_form_is_answered_in_order(client: Client, cat_jpeg: bytes) -> None:
    """Arrays, grey images and overlays come in the order of the request, each with its form."""
    forms = [OverlayPng(), Raw(), GrayPng(), ImageArray(), OverlayJpeg(0.7, "viridis", 50), Raw()]
    (explanation,) = client.explain(cat_jpeg, heatmaps=forms).explanations
    assert [one.format for one in explanation.heatmaps] == [form.format for form in forms]
    for one in explanation.heatmaps:
        at_layer = one.format == "raw"
        assert (one.height, one.width) == ((7, 7) if at_layer else (300, 451))
        assert one.normalization == ("none" if at_layer else "max")
        assert one.interpolation == ("none" if at_layer else "bilinear")
        if "png" in one.format or "jpeg" in one.format:
            assert Image.open(io.BytesIO(one.data)).size == (451, 300)
    np.testing.assert_array_equal(explanation.heatmaps[1].array, explanation.heatmaps[5].array)
    gray = np.asarray(Image.open(io.BytesIO(explanation.heatmaps[2].data))) / 255
    np.testing.assert_allclose(gray, explanation.heatmaps[3].array, atol=0.5 / 255 + 1e-6)


def test_classes_are_chosen_by_index_name_and_rank(client: Client, cat_jpeg: bytes) -> None:
    """One request explains several classes; each way to a class gives the same map."""
    by_name = client.explain(cat_jpeg, classes=["tabby", 285, "n02123159"])
    assert [one.index for one in by_name.explanations] == [281, 285, 282]
    by_rank = client.explain(cat_jpeg, top_k=3)
    assert [one.index for one in by_rank.explanations] == [
        one.index for one in by_rank.predictions[:3]
    ]
    maps = {one.index: one.heatmap for one in by_rank.explanations}
    for one in by_name.explanations:
        np.testing.assert_allclose(one.heatmap, maps[one.index], rtol=1e-5, atol=1e-6)
    assert not np.allclose(maps[281], maps[285], rtol=1e-2)
    assert client.explain(cat_jpeg, top_k=0).explanations == ()


def test_raw_pixels_give_what_their_file_gives(client: Client, images: Path) -> None:
    """A decoded image sent as pixels has the same answer as its file."""
    path = images / "espresso.jpg"
    pixels = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)
    assert_same(client.explain(pixels), client.explain(path))


@pytest.mark.parametrize("resize", ["stretch", "center-crop", "letterbox"])
def test_resize_modes_see_the_cat_and_cover_the_whole_image(
    client: Client, cat_jpeg: bytes, resize: ResizeName
) -> None:
    """In every resize mode the heat map is mapped back onto the original."""
    result = client.explain(cat_jpeg, resize=resize, classes=[285], heatmaps=[ImageArray()])
    heat = result.explanations[0].heatmaps[0].array
    assert heat.shape == (300, 451)
    margin = (451 - 300) // 2
    assert bool(heat[:, : margin - 1].any()) == (resize != "center-crop")
    assert result.top.index in {281, 282, 285}


def test_logits_come_when_asked_for(client: Client, cat_jpeg: bytes) -> None:
    """Logits agree with the probabilities and the score."""
    result = client.explain(cat_jpeg, logits=True, predictions=1000)
    assert result.logits is not None
    assert result.logits.shape == (1000,)
    assert result.explanations[0].score == pytest.approx(result.logits.max())
    exponentials = np.exp(result.logits - result.logits.max())
    for one in result.predictions[:5]:
        expected = exponentials[one.index] / exponentials.sum()
        assert one.probability == pytest.approx(expected, rel=1e-4)
    assert client.explain(cat_jpeg).logits is None


@with_small
def test_models_are_listed_and_described(client: Client) -> None:
    """Models, classes and layers are described."""
    lite, small = client.list_models()
    assert (lite.name, small.name) == ("efficientnet-lite0", "small")
    assert lite.weights.startswith("imagenet, float32, exported ")
    assert not lite.random_weights
    assert (small.weights, small.random_weights) == ("file small.keras", False)
    assert not lite.classes
    assert not lite.layers
    model = client.get_model("small")
    assert (model.input_height, model.input_width, model.class_count) == (SIZE, SIZE, CLASSES)
    assert model.default_layer == "block"
    model = client.get_model()
    assert model.name == "efficientnet-lite0"
    assert (model.input_height, model.input_width, model.class_count) == (224, 224, 1000)
    assert model.default_layer == "top_activation"
    assert model.classes[285].name == "Egyptian cat"
    layers = {layer.name: layer for layer in model.layers}
    assert layers["top_activation"].explainable
    assert tuple(layers["top_activation"].output_shape) == (-1, 7, 7, 1280)
    assert layers["stem_conv"].type == "Conv2D"
    assert not layers["avg_pool"].explainable


@with_small
def test_a_layer_that_is_not_warm_is_compiled_at_first_use(
    server: RunningServer, client: Client, cat_jpeg: bytes
) -> None:
    """Any candidate layer can be explained; the compile time and the counter show its cost."""
    cold: dict[str, Any] = {"model": "small", "layers": "conv1", "classes": [2]}
    before = client.get_model("small").compilation_count
    first = client.explain(cat_jpeg, **cold, timeout_s=120)
    assert first.explanations[0].heatmap.shape == (SIZE // 2, SIZE // 2)
    assert first.stats.compile_us > 0
    server.wait_for("conv1 in float32 by xla", 120)  # which takes its place
    # The first graph, then a trace for each of two batch sizes.
    assert client.get_model("small").compilation_count == before + 1 + 2
    again = client.explain(cat_jpeg, **cold)
    assert again.stats.compile_us == 0
    assert_same(again, first)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"classes": ["egyptian dog"]}, InvalidRequestError, "unknown class 'egyptian dog'"),
        ({"classes": [1000]}, InvalidRequestError, "0 to 999"),
        ({"classes": ["crane"]}, InvalidRequestError, r"134 \(crane\), 517 \(crane\)"),
        ({"classes": [1], "top_k": 1}, InvalidRequestError, "choose one"),
        ({"classes": list(range(6))}, InvalidRequestError, "may have 5"),
        ({"top_k": 6}, InvalidRequestError, "must be 0 to 5"),
        ({"model": "vgg16"}, NotFoundError, "this server has: efficientnet-lite0"),
        ({"layers": "conv9"}, NotFoundError, "no layer 'conv9'; the default is 'top_activation'"),
        ({"layers": "avg_pool"}, InvalidRequestError, "has no positions"),
        ({"heatmaps": [OverlayPng(alpha=1.5)]}, InvalidRequestError, "alpha is 1.5.*0 to 1"),
        ({"heatmaps": [OverlayJpeg(quality=0)]}, InvalidRequestError, "must be 1 to 100"),
        ({"predictions": -1}, InvalidRequestError, "must not be negative"),
    ],
)
def test_bad_options_get_clear_errors(
    client: Client, cat_jpeg: bytes, options: dict[str, Any], kind: type, message: str
) -> None:
    """The error says what is wrong and what is right; the next request is answered."""
    with pytest.raises(kind, match=message) as caught:
        client.explain(cat_jpeg, **options)
    assert isinstance(caught.value, GradCamError)
    assert caught.value.field
    assert client.explain(cat_jpeg).top.index == 285


def bad_images() -> dict[str, tuple[bytes | pb.RawImage, grpc.StatusCode]]:
    """Images that must be refused, with the error."""
    whole = (Path(__file__).parents[2] / "examples" / "images" / "cat.jpg").read_bytes()
    invalid, exhausted = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
    header = bytearray(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # the CRC is wrong now, and never reached
    return {
        "empty": (b"", invalid),
        "text": (b"this is a text file\n" * 50, invalid),
        "truncated": (whole[: len(whole) // 2], invalid),
        "raw mismatch": (pb.RawImage(data=b"abc", height_px=224, width_px=224), invalid),
        "raw negative": (pb.RawImage(data=b"", height_px=-1, width_px=-1), invalid),
        "oversized message": (bytes(33 * 2**20), exhausted),
        "huge png": (bytes(header), invalid),
    }


def as_request(image: bytes | pb.RawImage) -> pb.ExplainImageRequest:
    if isinstance(image, bytes):
        return pb.ExplainImageRequest(encoded_image=image)
    return pb.ExplainImageRequest(raw_image=image)


@pytest.mark.parametrize("kind", bad_images())
def test_bad_images_harm_nothing_else(server: RunningServer, cat_jpeg: bytes, kind: str) -> None:
    """The very next good request on the same connection is answered."""
    image, code = bad_images()[kind]
    unlimited = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options=unlimited) as channel:
        stub = pb_grpc.ExplanationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ExplainImage(as_request(image))
        assert caught.value.code() is code
        assert len(caught.value.details() or "") > 20
        answer = stub.ExplainImage(pb.ExplainImageRequest(encoded_image=cat_jpeg))
        assert answer.predictions[0].class_index == 285
    assert server.process.poll() is None


def test_unusual_images_are_fine(client: Client) -> None:
    """One pixel, grey, 16 bits, an alpha channel: all are answered."""
    rng = np.random.default_rng(0)
    unusual: dict[str, np.ndarray] = {
        "1x1": np.zeros((1, 1, 3), np.uint8),
        "grey": rng.integers(0, 256, (50, 60), dtype=np.uint8),
        "16-bit": rng.integers(0, 65536, (50, 60, 3), dtype=np.uint16),
        "alpha": rng.integers(0, 256, (50, 60, 4), dtype=np.uint8),
    }
    for name, pixels in unusual.items():
        data = cv2.imencode(".png", pixels)[1].tobytes()
        result = client.explain(data, heatmaps=[OverlayPng()])
        size = (result.image_height, result.image_width)
        assert size == pixels.shape[:2], name


def test_a_stream_survives_bad_images_and_keeps_its_order(client: Client, cat_jpeg: bytes) -> None:
    """Each answer is an outcome or an error, in the order of the images."""
    images: list[bytes | str] = [cat_jpeg, b"no image", cat_jpeg[:1000], "no/such/file.jpg"] * 8
    outcomes = list(client.explain_stream(images, max_in_flight=8))
    assert len(outcomes) == 32
    for image, outcome in zip(images, outcomes, strict=True):
        assert outcome.source is image
        if image is cat_jpeg:
            assert outcome.unwrap().top.index == 285
        elif isinstance(image, str):
            assert isinstance(outcome.error, FileNotFoundError)
        else:
            assert isinstance(outcome.error, InvalidRequestError)


def test_an_oversized_message_is_named_and_not_retried(
    client: Client, server: RunningServer
) -> None:
    """The client distinguishes it from an overloaded server."""
    with pytest.raises(MessageTooLargeError):
        client.explain(bytes(33 * 2**20))


@pytest.fixture(scope="module")
def mixed(images: Path) -> list[tuple[bytes, dict[str, Any], ImageExplanation]]:
    """64 requests, each with its own crop, classes and forms, and their answers in this process."""
    photo = Image.open(images / "espresso.jpg").convert("RGB")
    rng = random.Random(0)

    def crop() -> bytes:
        left, top = rng.randrange(0, 300), rng.randrange(0, 200)
        buffer = io.BytesIO()
        photo.crop((left, top, left + 250, top + 180)).save(buffer, "PNG")
        return buffer.getvalue()

    def options(number: int) -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [
            {"classes": [rng.randrange(1000)]},
            {"classes": [rng.randrange(1000) for _ in range(3)]},
            {"top_k": 2, "heatmaps": [Raw(), OverlayJpeg()]},
            {"resize": "letterbox"},
        ]
        return kinds[number % len(kinds)]

    requests = [(crop(), options(number)) for number in range(64)]
    config = ServeConfig(
        model=("efficientnet-lite0",), compiler=Compiler.TENSORFLOW, batch_sizes=(1,)
    )
    with LocalClient(config) as local:
        return [
            (image, options, next(local.explain_stream([image], **options)).unwrap())
            for image, options in requests
        ]


def test_sixty_four_clients_with_mixed_requests(
    server: RunningServer, mixed: list[tuple[bytes, dict[str, Any], ImageExplanation]]
) -> None:
    """No answer is mixed up, of many callers at a time.

    Each of 64 concurrent clients makes its own request; every answer must match the in-process
    one for that request.
    """
    assert len({expected.explanations[0].score for *_, expected in mixed}) > 60  # they do differ
    barrier = threading.Barrier(64)

    def ask(image: bytes, options: dict[str, Any], _: ImageExplanation) -> ImageExplanation:
        with Client(server.address) as client:
            barrier.wait()
            return client.explain(image, **options)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, *zip(*mixed, strict=True)))
    for answer, (*_, expected) in zip(answers, mixed, strict=True):
        assert_same(answer, expected)


@with_small
def test_nothing_is_compiled_for_requests_of_warm_graphs(
    server: RunningServer, client: Client, images: Path
) -> None:
    """Neither the counter nor XLA's log shows a compilation, whatever the request."""
    kinds: list[dict[str, Any]] = [
        *({"classes": [index]} for index in range(CLASSES)),
        *({"top_k": count, "heatmaps": [Raw(), OverlayJpeg()]} for count in range(6)),
        *({"resize": "letterbox"}, {"resize": "center-crop", "logits": True}),
    ]
    photos = [images / "cat.jpg", images / "espresso.jpg"]
    counted, witnessed = client.get_model("small").compilation_count, compilations(server)
    assert witnessed > 0
    with ThreadPoolExecutor(16) as pool:
        asked = [
            pool.submit(client.explain, photo, model="small", **kind)
            for kind in kinds * 4
            for photo in photos
        ]
        assert {one.result().stats.compile_us for one in asked} == {0}
    assert client.get_model("small").compilation_count == counted
    assert compilations(server) == witnessed


@with_small
def test_two_models_are_served_at_once(client: Client, cat_jpeg: bytes) -> None:
    """Each request is answered by the model that it names."""
    names = ["efficientnet-lite0", "small"] * 8
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda name: client.explain(cat_jpeg, model=name), names))
    assert [result.model for result in results] == names
    tops = {name: {r.top.index for r in results if r.model == name} for name in names}
    assert tops["efficientnet-lite0"] == {285}
    assert len(tops["small"]) == 1


def test_clients_that_cancel_and_time_out_harm_nobody(
    client: Client, server: RunningServer, cat_jpeg: bytes
) -> None:
    """Clients that cancel or time out get errors; all others get their answers."""
    request = pb.ExplainImageRequest(encoded_image=cat_jpeg)
    with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(8) as pool:
        stub = pb_grpc.ExplanationServiceStub(channel)
        good = [pool.submit(client.explain, cat_jpeg) for _ in range(24)]
        futures = []
        for number in range(60):
            futures.append(stub.ExplainImage.future(request, timeout=0.001 * (number % 30)))
            if number % 2:
                futures[-1].cancel()
        codes = {future.code() for future in futures}
        assert {one.result().top.index for one in good} == {285}
    assert codes <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # the work before it takes longer than its deadline
    }
    assert len(codes) > 1
    assert client.explain(cat_jpeg).top.index == 285


def test_a_stream_dropped_in_the_middle_harms_nobody(client: Client, cat_jpeg: bytes) -> None:
    """The client leaves with requests in flight; the next ones are answered."""
    for _ in range(5):
        stream = client.explain_stream([cat_jpeg] * 50)
        assert next(stream).unwrap().top.index == 285
        stream.close()
    assert client.explain(cat_jpeg).top.index == 285


def test_stats_add_up(client: Client, cat_jpeg: bytes) -> None:
    """The times of the stages add up to the whole time."""
    started = time.perf_counter()
    stats = client.explain(cat_jpeg, heatmaps=[OverlayJpeg()]).stats
    elapsed_us = (time.perf_counter() - started) * 1e6
    parts = (stats.decode_us, stats.queue_us, stats.compute_us, stats.render_us)
    assert all(part > 0 for part in parts)
    assert sum(parts) < elapsed_us
    assert stats.batch_size <= stats.padded_batch_size


REFLECTION_CLIENT = """
import json, sys, grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
assert not any(name.startswith("gradcam") for name in sys.modules)
channel = grpc.insecure_channel(sys.argv[1])
database = ProtoReflectionDescriptorDatabase(channel)
pool = descriptor_pool.DescriptorPool(database)
service = pool.FindServiceByName("gradcam.v1.ExplanationService")
method = service.methods_by_name["ExplainImage"]
Request, Response = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
call = channel.unary_unary(
    "/gradcam.v1.ExplanationService/ExplainImage",
    request_serializer=Request.SerializeToString, response_deserializer=Response.FromString,
)
answer = call(Request(encoded_image=open(sys.argv[2], "rb").read()))
assert not any(name.startswith("gradcam") for name in sys.modules)
print(json.dumps({"services": database.get_services(), **json_format.MessageToDict(answer)}))
"""


def test_reflection_is_enough_to_use_the_service(server: RunningServer, images: Path) -> None:
    """A script that knows no proto file learns the service from the server and calls it."""
    command = [sys.executable, "-c", REFLECTION_CLIENT, server.address, str(images / "cat.jpg")]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert "gradcam.v1.ExplanationService" in answer["services"]
    assert "grpc.health.v1.Health" in answer["services"]
    assert answer["predictions"][0]["className"] == "Egyptian cat"
