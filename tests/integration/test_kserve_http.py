"""KServe V1 and the Open Inference Protocol over HTTP, through independent clients.

tritonclient[http] and, where GRADCAM_KSERVE_PYTHON names a Python that has it, kserve's own client.
"""

import base64
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from gradcam_client import Client
from support.server import RunningServer, quick, serving

MODEL = "efficientnet-lite0"
NAMES = ("logits", "probabilities", "heatmap")
JSON = "application/json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "http.md"
PEER = Path(__file__).resolve().parents[1] / "support" / "kserve_peer.py"
PIXELS = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(1, 5, 4, 3)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A warm server with an HTTP port."""
    with serving(*quick(), "--http-port", "0", "--max-message-bytes", "4000000") as running:
        yield running


@pytest.fixture
def oip(server: RunningServer) -> Iterator[Any]:
    """Triton's client for HTTP."""
    address = server.http_address.removeprefix("http://")
    with triton.InferenceServerClient(address) as client:
        yield client


@pytest.fixture
def by_grpc(server: RunningServer) -> Iterator[Any]:
    """Triton's client for gRPC."""
    with triton_grpc.InferenceServerClient(server.address) as client:
        yield client


def pixels(module: Any, array: NDArray[np.uint8], **options: Any) -> list[Any]:
    tensor = module.InferInput("image", array.shape, "UINT8")
    return [tensor.set_data_from_numpy(array, **options)]


def files(module: Any, *contents: bytes) -> list[Any]:
    array = np.empty(len(contents), dtype=object)
    array[:] = contents
    tensor = module.InferInput("encoded_image", array.shape, "BYTES")
    return [tensor.set_data_from_numpy(array)]


def assert_same_bits(answer: Any, expected: Any, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        ours, theirs = answer.as_numpy(name), expected.as_numpy(name)
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes(), name


def post(server: RunningServer, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Returns the status and the JSON of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": JSON, **headers}
    request = urllib.request.Request(server.http_address + path, data, given)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            # Other types are not shown by KServe's client.
            answer = json.load(error) if error.headers["Content-Type"] == JSON else {}
            return error.code, answer


def test_it_is_live_and_ready_and_describes_itself(oip: Any, by_grpc: Any) -> None:
    """Health, metadata, configuration, statistics and index have the facts of gRPC."""
    assert oip.is_server_live()
    assert oip.is_server_ready()
    assert oip.is_model_ready(MODEL)
    assert oip.is_model_ready(MODEL, "1")
    assert not oip.is_model_ready(MODEL, "2")
    assert not oip.is_model_ready("nothing")
    assert "binary_tensor_data" in oip.get_server_metadata()["extensions"]
    metadata, expected = oip.get_model_metadata(MODEL), by_grpc.get_model_metadata(MODEL)
    assert (metadata["name"], metadata["versions"]) == (MODEL, ["1"])
    for kind in ("inputs", "outputs"):
        assert [(one["name"], one["datatype"], one["shape"]) for one in metadata[kind]] == [
            (one.name, one.datatype, list(one.shape)) for one in getattr(expected, kind)
        ]
    config = oip.get_model_config(MODEL)
    assert (config["max_batch_size"], config["platform"]) == (64, "gradcam")
    assert "layercam" in config["parameters"]["methods"]["string_value"].split(",")
    oip.infer(MODEL, pixels(triton, PIXELS))
    (statistics,) = oip.get_inference_statistics(MODEL)["model_stats"]
    assert statistics["name"] == MODEL
    assert isinstance(statistics["inference_stats"]["success"]["count"], int)
    assert oip.get_model_repository_index() == [
        {"name": MODEL, "version": "1", "state": "READY", "reason": ""}
    ]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_answers_are_those_of_grpc_to_the_bit(
    oip: Any, by_grpc: Any, binary_in: bool, binary_out: bool
) -> None:
    """Logits, probabilities and heat maps, in binary and in JSON, in both directions."""
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in NAMES]
    answer = oip.infer(
        MODEL,
        pixels(triton, PIXELS, binary_data=binary_in),
        outputs=wanted,
        request_id="7",
        model_version="1",
    )
    assert answer.get_response()["id"] == "7"
    assert_same_bits(answer, by_grpc.infer(MODEL, pixels(triton_grpc, PIXELS)))


def test_files_and_parameters_are_those_of_grpc(oip: Any, by_grpc: Any, cat_jpeg: bytes) -> None:
    """An encoded image and all parameters; outputs are in the order of the request."""
    options: dict[str, Any] = {"priority": 2, "timeout": 60_000_000}
    options["parameters"] = {"class": 281, "method": "layercam"}
    answer = oip.infer(MODEL, files(triton, cat_jpeg), **options)
    expected = by_grpc.infer(MODEL, files(triton_grpc, cat_jpeg), **options)
    assert_same_bits(answer, expected)
    wanted = [triton.InferRequestedOutput(name) for name in ("heatmap", "logits")]
    some = oip.infer(MODEL, files(triton, cat_jpeg), outputs=wanted, **options)
    assert [one["name"] for one in some.get_response()["outputs"]] == ["heatmap", "logits"]
    assert_same_bits(some, expected, ("heatmap", "logits"))


def test_errors_reach_tritons_client(oip: Any, cat_jpeg: bytes) -> None:
    """The status is that of HTTP, and the text is gRPC's."""
    good = pixels(triton, PIXELS)
    for inputs, options, status, text in (
        (good, {"model_version": "2"}, "404", "its versions are: 1"),
        (good, {"parameters": {"class": "catt"}}, "400", "unknown class 'catt'"),
        (good, {"parameters": {"colour": "red"}}, "400", "unknown parameter 'colour'"),
        (good * 2, {}, "400", "exactly one input"),
        (files(triton, cat_jpeg, b"no image"), {}, "400", "image 1: "),
        (good, {"request_compression_algorithm": "gzip"}, "415", "encoding 'gzip'"),
        (good, {"timeout": 1}, "504", "deadline"),
        (files(triton, bytes(4_000_000)), {}, "413", "larger than 4,000,000 bytes"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            oip.infer(MODEL, inputs, **options)
        assert caught.value.status() == status
        assert text in caught.value.message()
    for path in ("get_model_metadata", "get_model_config", "get_inference_statistics"):
        with pytest.raises(InferenceServerException, match="this server has"):
            getattr(oip, path)("nothing")
    with pytest.raises(InferenceServerException):
        oip.get_log_settings()
    assert oip.is_server_live()


def test_v1_predicts_and_explains_several_instances(server: RunningServer, cat_jpeg: bytes) -> None:
    """Each instance has the answer that gradcam.v1 gives for it, in their order."""
    instance = {"b64": base64.b64encode(cat_jpeg).decode()}
    instances = [instance, PIXELS[0].tolist(), {"image": instance}]
    path = f"/v1/models/{MODEL}"
    parameters: dict[str, Any] = {"predictions": 3}
    status, answer = post(
        server, f"{path}:predict", {"instances": instances, "parameters": parameters}
    )
    assert status == 200
    assert [len(one) for one in answer["predictions"]] == [3, 3, 3]
    parameters = {"class": ["tabby", 281], "logits": True, "heatmap": "raw"}
    status, explained = post(
        server, f"{path}:explain", {"instances": instances, "parameters": parameters}
    )
    assert status == 200
    with Client(server.address) as client:
        for index, image in enumerate((cat_jpeg, PIXELS[0], cat_jpeg)):
            expected = client.explain(image, classes=["tabby", 281], logits=True)
            for found, one in zip(
                answer["predictions"][index], expected.predictions[:3], strict=True
            ):
                assert (found["class_index"], found["class_name"]) == (one.index, one.name)
                assert found["probability"] == pytest.approx(one.probability, rel=1e-3)
                assert found["logit"] == pytest.approx(one.logit, rel=1e-3, abs=1e-3)
            ours = explained["explanations"][index]
            assert [one["class_name"] for one in ours["explanations"]] == [
                one.name for one in expected.explanations
            ]
            for found, theirs in zip(ours["explanations"], expected.explanations, strict=True):
                (heatmap,) = found["heatmaps"]
                array = np.frombuffer(base64.b64decode(heatmap["data"]), "<f4")
                scale = float(np.abs(theirs.heatmap).max())
                np.testing.assert_allclose(
                    array, theirs.heatmap.ravel(), rtol=1e-3, atol=1e-4 * scale
                )
            assert len(ours["logits"]) == 1000


@pytest.mark.parametrize(
    ("method", "body", "field", "text"),
    [
        ("predict", {"instances": [{}]}, "instances[0]", "this instance is an object"),
        ("predict", {"instances": [{"b64": "bm8="}] * 2}, "instances", "image 0: "),
        ("predict", {"image": 1}, "body", "unknown key"),
        ("predict", b"[" * 100_000, "body", "nested too deeply"),
        ("predict", b'{"instances": [1e400]}', "body", "too large"),
        (
            "predict",
            {"instances": [PIXELS[0].tolist()], "parameters": {"class": 1}},
            "parameters.class",
            "no effect on predictions",
        ),
        (
            "explain",
            {"instances": [PIXELS[0].tolist()], "parameters": {"class": "catt"}},
            "parameters.class",
            "unknown class 'catt'",
        ),
        (
            "explain",
            {"instances": [PIXELS[0].tolist()], "parameters": {"colour": 1}},
            "colour",
            "unknown option",
        ),
    ],
)
def test_v1_errors_name_the_field(
    server: RunningServer, method: str, body: Any, field: str, text: str
) -> None:
    """The body is plain JSON with ``error``, as KServe's client shows it, and problem details."""
    status, problem = post(server, f"/v1/models/{MODEL}:{method}", body)
    assert (status, problem["code"], problem["field"]) == (400, "INVALID_ARGUMENT", field)
    assert text in problem["error"]


def test_hostile_v2_bodies_are_refused(server: RunningServer) -> None:
    """Wrong lengths and sizes are errors of the caller's, which name the field."""
    path, header = f"/v2/models/{MODEL}/infer", "Inference-Header-Content-Length"
    text = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "shape": [1, 2, 3],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": 6},
                }
            ]
        }
    ).encode()
    for body, length, field in (
        (text + b"abcdef", "-1", header),
        (text + b"abcdef", "99999", header),
        (text + b"abcdef", "one", header),
        (text + b"abcde", str(len(text)), "inputs.parameters.binary_data_size"),
        (text + b"abcdefg", str(len(text)), "inputs.parameters.binary_data_size"),
        (text, str(len(text)), "inputs.parameters.binary_data_size"),
    ):
        status, problem = post(server, path, body, **{header: length})
        assert (status, problem["field"]) == (400, field)
    assert post(server, path, text + b"abcdef", **{header: str(len(text))})[0] == 200
    assert post(server, "/v2/nothing", {})[0] == 404
    assert "Traceback" not in server.text


def test_the_commands_of_the_page_work(server: RunningServer) -> None:
    """Each command of the sections about KServe in docs/http.md is answered as it stands."""
    text = PAGE.read_text("utf-8").partition("## KServe V1")[2]
    commands = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert len(commands) == 3
    answers = []
    for command in commands:
        assert "http://localhost:8080" in command
        done = subprocess.run(
            ["bash", "-c", command.replace("http://localhost:8080", server.http_address)],
            cwd=PAGE.parents[1],
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        )
        answers.append(json.loads(done.stdout))
    predicted, explained, inferred = answers
    assert predicted["predictions"][0][0]["class_name"] == "Egyptian cat"
    (explained_image,) = explained["explanations"]
    names = [one["class_name"] for one in explained_image["explanations"]]
    assert names == ["tabby", "Egyptian cat"]
    overlay = base64.b64decode(explained_image["explanations"][0]["heatmaps"][0]["data"])
    assert overlay.startswith(b"\xff\xd8")
    assert inferred["outputs"][0]["shape"] == [1, 7, 7]


@pytest.mark.skipif(
    "GRADCAM_KSERVE_PYTHON" not in os.environ,
    reason="GRADCAM_KSERVE_PYTHON names no Python with kserve, whose pins exclude ours",
)
def test_kserves_client_agrees_with_grpc(
    server: RunningServer, by_grpc: Any, cat_jpeg: bytes, tmp_path: Path
) -> None:
    """Each call of KServe's client, V1 and V2, gives what gRPC gives, to the bit."""
    image = tmp_path / "cat.jpg"
    image.write_bytes(cat_jpeg)
    done = subprocess.run(
        [os.environ["GRADCAM_KSERVE_PYTHON"], str(PEER), server.http_address, MODEL, str(image)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=240,
    )
    found = json.loads(done.stdout)
    for call in ("v1 model ready", "v2 live", "v2 ready", "v2 model ready"):
        assert found[call] is True, call
    assert found["v2 unknown model ready"] is False
    expected = by_grpc.infer(MODEL, pixels(triton_grpc, PIXELS))
    parameters = {"class": "tabby"}
    of_file = by_grpc.infer(MODEL, files(triton_grpc, cat_jpeg), parameters=parameters)
    for call, answer in (
        *((f"v2 {form}", expected) for form in ("binary", "json", "mixed")),
        ("v2 file", of_file),
    ):
        for name in NAMES:
            shape, data = found[call][name]
            array = answer.as_numpy(name)
            assert (tuple(shape), base64.b64decode(data)) == (array.shape, array.tobytes()), call
    tops = [one[0]["class_index"] for one in found["v1 predict"]["predictions"]]
    top_pixels = int(expected.as_numpy("logits").argmax())
    assert tops == [285, 285, top_pixels]
    with Client(server.address) as client:
        one = client.explain(cat_jpeg, classes=["tabby", 281], method="layercam", logits=True)
    (explained,) = found["v1 explain"]["explanations"]
    assert one.logits is not None
    assert np.array(explained["logits"], np.float32).tobytes() == one.logits.tobytes()
    maps = [base64.b64decode(each["heatmaps"][0]["data"]) for each in explained["explanations"]]
    assert maps == [each.heatmap.tobytes() for each in one.explanations]
    assert "this instance is an object" in found["v1 error"]
    assert "400" in found["v1 error"]
    assert f"this server has: {MODEL}" in found["v2 error"]
