"""The Open Inference Protocol, through an independent client: tritonclient."""

import queue
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.service_pb2 as triton_pb
import tritonclient.grpc.service_pb2_grpc as triton_grpc
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from gradcam_client import Client
from support.server import TRACED, RunningServer, quick, serving
from support.xla_exports import serving_xla

MODEL = "efficientnet-lite0"
SERVICE = "inference.GRPCInferenceService"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "open_inference.md"
# Stated in docs/architecture.md: float32, in batches of other sizes.
RTOL, ATOL = 1e-3, 1e-4


@pytest.fixture(scope="module", params=["model", "xla"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    """A warm server whose queue is shorter than the largest request: of the model or an export."""
    limits = ("--max-queue-length", "8", "--max-stream-in-flight", "4")
    of_model = request.param == "model"
    with serving(*TRACED, *limits) if of_model else serving_xla(*limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    """The gradcam client."""
    with Client(server.address) as client:
        yield client


@pytest.fixture
def oip(server: RunningServer) -> Iterator[Any]:
    """Triton's client."""
    with triton.InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def cat(images: Path) -> NDArray[np.uint8]:
    """The cat's pixels: RGB, (300, 451, 3)."""
    return decoded(images / "cat.jpg")


@pytest.fixture(scope="module")
def espresso(images: Path) -> NDArray[np.uint8]:
    """The espresso's pixels: RGB."""
    return decoded(images / "espresso.jpg")


def decoded(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image.astype(np.uint8)


def pixels(array: NDArray[np.uint8]) -> list[Any]:
    return [triton.InferInput("image", array.shape, "UINT8").set_data_from_numpy(array)]


def files(*contents: bytes) -> list[Any]:
    array = np.empty(len(contents), dtype=object)
    array[:] = contents
    tensor = triton.InferInput("encoded_image", array.shape, "BYTES")
    return [tensor.set_data_from_numpy(array)]


def wanted(*names: str) -> list[Any]:
    return [triton.InferRequestedOutput(name) for name in names]


def assert_close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Asserts that arrays agree within the stated tolerance."""
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=ATOL * scale)


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Returns the code and the message with which a call fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status(), caught.value.message()


def test_it_is_live_and_ready(oip: Any, server: RunningServer) -> None:
    """It is ready for its models; health and reflection know the service, too."""
    assert oip.is_server_live()
    assert oip.is_server_ready()
    assert oip.is_model_ready(MODEL)
    assert oip.is_model_ready(MODEL, "1")
    assert not oip.is_model_ready(MODEL, "2")
    assert not oip.is_model_ready("resnet18")
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        (answer,) = reflection.ServerReflectionInfo(iter([asked]))
        (found,) = answer.file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(found).service[0].name == SERVICE[10:]


def test_it_describes_itself_and_its_models(oip: Any) -> None:
    """Metadata, configuration and index, as Triton's client reads them."""
    server = oip.get_server_metadata(as_json=True)
    assert server["name"] == "gradcam-server"
    assert set(server["extensions"]) == {"model_configuration", "statistics"}
    metadata = oip.get_model_metadata(MODEL, as_json=True)
    assert (metadata["name"], metadata["versions"]) == (MODEL, ["1"])
    assert {one["name"]: (one["datatype"], one["shape"]) for one in metadata["inputs"]} == {
        "image": ("UINT8", ["-1", "-1", "-1", "3"]),
        "encoded_image": ("BYTES", ["-1", "1"]),
    }
    assert {one["name"]: (one["datatype"], one["shape"]) for one in metadata["outputs"]} == {
        "logits": ("FP32", ["-1", "1000"]),
        "probabilities": ("FP32", ["-1", "1000"]),
        "heatmap": ("FP32", ["-1", "-1", "-1"]),
    }
    config = oip.get_model_config(MODEL).config
    assert (config.platform, config.max_batch_size) == ("gradcam", 64)
    assert all(one.optional for one in config.input)
    assert "top_activation" in config.parameters["layers"].string_value.split(",")
    assert "layercam" in config.parameters["methods"].string_value.split(",")
    (index,) = oip.get_model_repository_index().models
    assert (index.name, index.version, index.state) == (MODEL, "1", "READY")


@pytest.mark.parametrize("encoded", [False, True])
def test_it_answers_what_our_own_client_is_answered(
    oip: Any, client: Client, cat: NDArray[np.uint8], cat_jpeg: bytes, encoded: bool
) -> None:
    """Pixels and files give the same logits, probabilities and heat map as over gradcam.v1."""
    inputs = files(cat_jpeg) if encoded else pixels(cat)
    answer = oip.infer(MODEL, inputs, request_id="seven")
    expected = client.explain(cat_jpeg if encoded else cat, logits=True)
    assert expected.logits is not None
    assert answer.get_response().id == "seven"
    assert_close(answer.as_numpy("logits"), expected.logits[None])
    assert_close(answer.as_numpy("heatmap"), expected.explanations[0].heatmap[None])
    probabilities = answer.as_numpy("probabilities")
    assert probabilities.shape == (1, 1000)
    assert probabilities.sum() == pytest.approx(1, rel=1e-5)
    for one in expected.predictions:
        assert probabilities[0, one.index] == pytest.approx(one.probability, rel=RTOL)


def test_images_of_a_batch_are_answered_as_if_alone(
    oip: Any, cat: NDArray[np.uint8], images: Path
) -> None:
    """More images than the queue has places, each with its own top class, in their order."""
    batch = np.stack([np.roll(cat, 20 * shift, axis=1) for shift in range(12)])
    together = oip.infer(MODEL, pixels(batch))
    assert together.as_numpy("heatmap").shape == (12, 7, 7)
    for index in (0, 5, 11):
        alone = oip.infer(MODEL, pixels(batch[index]))
        for name in ("logits", "probabilities", "heatmap"):
            assert_close(together.as_numpy(name)[index], alone.as_numpy(name)[0])
    named = [(images / f"{name}.jpg").read_bytes() for name in ("espresso", "cat")]
    answer = oip.infer(MODEL, files(*named))
    assert answer.as_numpy("logits").argmax(axis=1).tolist() == [967, 285]


def test_parameters_choose_class_method_and_layer(
    oip: Any, client: Client, cat: NDArray[np.uint8]
) -> None:
    """Each parameter has the same effect as over gradcam.v1."""

    def heatmap(**parameters: Any) -> NDArray[np.float32]:
        answer = oip.infer(MODEL, pixels(cat), parameters=parameters, outputs=wanted("heatmap"))
        return answer.as_numpy("heatmap")[0]

    tabby = client.explain(cat, classes=["tabby"]).explanations[0].heatmap
    assert_close(heatmap(**{"class": "tabby"}), tabby)
    assert_close(heatmap(**{"class": 281}), tabby)
    assert not np.allclose(heatmap(), tabby, rtol=0.1)
    layercam = client.explain(cat, method="layercam").explanations[0].heatmap
    assert_close(heatmap(method="layercam"), layercam)
    assert not np.allclose(heatmap(), layercam, rtol=0.1)
    layer = client.explain(cat, layers="block6d_add").explanations[0].heatmap
    assert_close(heatmap(layer="block6d_add"), layer)


@pytest.mark.parametrize("server", ["model"], indirect=True)  # it needs graphs of its own
def test_a_method_of_many_passes_is_a_parameter(oip: Any, cat: NDArray[np.uint8]) -> None:
    """Integrated Gradients give a map of the pixels."""
    answer = oip.infer(MODEL, pixels(cat), parameters={"method": "integrated-gradients"})
    assert answer.as_numpy("heatmap").shape == (1, 224, 224)


def test_only_what_is_asked_for_is_sent(oip: Any, cat: NDArray[np.uint8]) -> None:
    """Only the requested outputs are sent, in the order of the request."""
    answer = oip.infer(MODEL, pixels(cat), outputs=wanted("probabilities", "logits"))
    names = [one.name for one in answer.get_response().outputs]
    assert names == ["probabilities", "logits"]
    assert answer.as_numpy("heatmap") is None
    logits = answer.as_numpy("logits").astype(np.float64)
    softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(answer.as_numpy("probabilities"), softmax, rtol=1e-4, atol=1e-9)


def test_calls_in_parallel_get_their_own_answers(
    oip: Any, cat: NDArray[np.uint8], espresso: NDArray[np.uint8]
) -> None:
    """Each callback of async_infer gets the answer to its request."""
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for index in range(6):
        oip.async_infer(
            MODEL,
            pixels(espresso if index % 2 else cat),
            lambda result, error, index=index: answers.put((index, result, error)),
            request_id=str(index),
            priority=1 + index % 3,
            timeout=60_000_000,
        )
    for _ in range(6):
        index, result, error = answers.get(timeout=60)
        assert error is None
        assert result.get_response().id == str(index)
        assert result.as_numpy("logits").argmax() == (967 if index % 2 else 285)


def test_a_stream_answers_each_request_in_order(
    oip: Any, cat: NDArray[np.uint8], espresso: NDArray[np.uint8]
) -> None:
    """Bad requests are answered by errors, in order, and the stream goes on."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    oip.start_stream(lambda result, error: answers.put((result, error)))
    bad = {3: (MODEL, files(b"no image")), 7: ("resnet18", pixels(cat))}
    count = 20
    for index in range(count):
        model, inputs = bad.get(index, (MODEL, pixels(espresso if index % 2 else cat)))
        oip.async_stream_infer(
            model, inputs, request_id=str(index), enable_empty_final_response=index % 4 == 0
        )
    for index in range(count):
        result, error = answers.get(timeout=60)
        if index in bad:
            assert ("not a JPEG" if index == 3 else "unknown model") in error.message()
            continue
        assert error is None
        assert result.get_response().id == str(index)
        assert result.get_response().parameters["triton_final_response"].bool_param
        assert result.as_numpy("logits").argmax() == (967 if index % 2 else 285)
    oip.stop_stream()
    assert answers.empty()


def test_statistics_add_up(oip: Any, cat: NDArray[np.uint8], cat_jpeg: bytes) -> None:
    """Images, batches, successes and failures are those of the requests in between."""

    def statistics() -> Any:
        (one,) = oip.get_inference_statistics(MODEL).model_stats
        return one

    before = statistics()
    for _ in range(3):
        oip.infer(MODEL, pixels(cat))
    oip.infer(MODEL, files(*[cat_jpeg] * 8))
    refusal(lambda: oip.infer(MODEL, files(b"no image")))
    refusal(lambda: oip.infer(MODEL, pixels(cat), outputs=wanted("saliency")))
    after = statistics()
    assert after.inference_count - before.inference_count == 3 + 8
    # One batch for each of the three images, and two to eight for the eight.
    assert 3 + 2 <= after.execution_count - before.execution_count <= 3 + 8
    assert after.last_inference > before.last_inference
    stages, earlier = after.inference_stats, before.inference_stats
    assert stages.fail.count - earlier.fail.count == 2
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    for name in ("success", *parts):
        assert getattr(stages, name).count - getattr(earlier, name).count == 4
    assert stages.compute_infer.ns > earlier.compute_infer.ns
    assert sum(getattr(stages, name).ns for name in parts) <= stages.success.ns
    assert oip.get_inference_statistics().model_stats[0] == after


def test_errors_say_what_was_wrong(oip: Any, cat: NDArray[np.uint8]) -> None:
    """The codes are those of gradcam.v1, and messages say what is right."""

    def infer(inputs: list[Any], model: str = MODEL, **options: Any) -> tuple[str, str]:
        return refusal(lambda: oip.infer(model, inputs, **options))

    invalid, not_found = "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND"
    good = pixels(cat)
    for (code, message), expected, text in (
        (infer(good, "resnet18"), not_found, f"this server has: {MODEL}"),
        (infer(good, model_version="2"), not_found, "its versions are: 1"),
        (infer(good, parameters={"layer": "nothing"}), not_found, "no layer 'nothing'"),
        (infer(good, parameters={"class": 1000}), invalid, "out of range"),
        (infer(good, parameters={"class": "catt"}), invalid, "unknown class 'catt'"),
        (infer(good, parameters={"method": "guess"}), invalid, "layercam"),
        (infer(good, parameters={"colour": "red"}), invalid, "unknown parameter 'colour'"),
        (infer(good, outputs=wanted("saliency")), invalid, "unknown output 'saliency'"),
        (infer(good * 2), invalid, "exactly one input"),
        (infer(pixels(cat[..., :2])), invalid, "[height, width, 3]"),
        (infer(files(b"no image")), invalid, "not a JPEG"),
        (infer(files(*[b""] * 65)), invalid, "1 to 64 images"),
        (infer(good, timeout=1), "StatusCode.DEADLINE_EXCEEDED", "deadline"),
    ):
        assert code == expected, message
        assert text in message
    for call in (oip.get_model_metadata, oip.get_model_config, oip.get_inference_statistics):
        assert refusal(partial(call, "resnet18"))[0] == not_found
    assert refusal(oip.get_log_settings)[0] == "StatusCode.UNIMPLEMENTED"
    oip.infer(MODEL, good, model_version="1")


def test_a_bad_image_of_a_batch_is_named(oip: Any, cat_jpeg: bytes) -> None:
    """No image is answered, and the error names the bad one."""
    code, message = refusal(lambda: oip.infer(MODEL, files(cat_jpeg, cat_jpeg, b"no image")))
    assert code == "StatusCode.INVALID_ARGUMENT"
    assert message.startswith("image 2: ")


def test_errors_have_details(server: RunningServer) -> None:
    """google.rpc.BadRequest names the field, as in gradcam.v1."""
    with grpc.insecure_channel(server.address) as channel:
        stub = triton_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(triton_pb.ModelInferRequest(model_name=MODEL))
    error: Any = caught.value
    status = rpc_status.from_call(error)
    assert status is not None
    details = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(details)
    assert details.field_violations[0].field == "inputs"


def test_elements_in_contents_are_read(server: RunningServer, cat_jpeg: bytes) -> None:
    """Clients without raw_input_contents, as KServe's specification has them, are served."""
    request = triton_pb.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="encoded_image", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(cat_jpeg)
    with grpc.insecure_channel(server.address) as channel:
        answer = triton_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert triton.InferResult(answer).as_numpy("logits").argmax() == 285


def test_clients_that_go_leave_nothing_behind(
    oip: Any, server: RunningServer, cat: NDArray[np.uint8]
) -> None:
    """Cancelled streams and calls count as failures, and the next ones are answered."""

    def fails() -> int:
        return int(oip.get_inference_statistics(MODEL).model_stats[0].inference_stats.fail.count)

    before = fails()
    for _ in range(3):
        with triton.InferenceServerClient(server.address) as impatient:
            answers: queue.Queue[Any] = queue.Queue()
            impatient.start_stream(lambda result, error, answers=answers: answers.put(result))
            for _ in range(20):
                impatient.async_stream_infer(MODEL, pixels(cat))
            assert answers.get(timeout=60) is not None
            impatient.stop_stream(cancel_requests=True)
            call = impatient.async_infer(MODEL, pixels(cat), lambda result, error: None)
            call.cancel()
    for _ in range(10):
        assert oip.infer(MODEL, pixels(cat)).as_numpy("logits").argmax() == 285
    # At least those of the streams in progress.
    assert fails() - before >= 3


def test_a_stream_ends_when_the_server_drains(cat: NDArray[np.uint8]) -> None:
    """Requests that were read are answered; then the stream ends with UNAVAILABLE."""
    server = RunningServer(*quick())
    try:
        with triton.InferenceServerClient(server.wait_ready().address) as oip:
            answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
            oip.start_stream(lambda result, error: answers.put((result, error)))
            oip.async_stream_infer(MODEL, pixels(cat))
            assert answers.get(timeout=60)[1] is None
            assert server.stop() == 0
            _, error = answers.get(timeout=60)
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert error.message() == "the server is shutting down"
        assert "Traceback" not in server.text
    finally:
        server.kill()


def test_a_cold_server_is_live_and_not_ready(cat: NDArray[np.uint8]) -> None:
    """Before it is warm it is live but not ready, and refuses requests."""
    server = RunningServer(*TRACED)
    try:
        with triton.InferenceServerClient(server.address) as oip:
            assert oip.is_server_live()
            assert not oip.is_server_ready()
            assert not oip.is_model_ready(MODEL)
            assert oip.get_server_metadata().name == "gradcam-server"
            code, message = refusal(lambda: oip.infer(MODEL, pixels(cat)))
        assert (code, message) == ("StatusCode.UNAVAILABLE", "the server is warming up")
        assert server.stop() == 0
    finally:
        server.kill()


def test_the_pages_example_runs(server: RunningServer, images: Path, tmp_path: Path) -> None:
    """The Python of docs/open_inference.md prints what its comments say."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    code = "".join(blocks).replace("localhost:50051", server.address)
    expected = re.findall(r"print\(.*  # (.*)$", code, re.M)
    shutil.copy(images / "cat.jpg", tmp_path)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(expected) == 2
    assert ended.stdout.splitlines() == expected
