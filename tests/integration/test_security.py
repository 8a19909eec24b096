"""Tokens, limits and administration of the real server process."""

import re
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from gradcam.admin.v1 import admin_service_pb2 as admin_pb
from gradcam.admin.v1 import admin_service_pb2_grpc as admin_grpc
from gradcam.inference import grpc_service_pb2 as inference_pb
from gradcam.inference import grpc_service_pb2_grpc as inference_grpc
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.transport.security.tokens import Token, hash_token, to_toml
from support.calls import TIMEOUT_S, connect, failure, retry_after_s
from support.certificates import replace
from support.exported_model import exported_model
from support.server import GRADCAM, RunningServer, quick

CONFIG = """
model = ["efficientnet-lite0={model}"]
batch_sizes = [1, 4]
max_layers = 2
max_formats = {formats}
max_image_pixels = 1_000_000
max_message_bytes = 1_048_576
max_streams = 6
max_connection_streams = 4
token_file = "tokens.toml"
admin_port = 0
http_port = 0
"""
TOKENS = (
    Token("alice", (hash_token("alices"),)),
    Token("root", (hash_token("roots"),), admin=True),
    Token("two", (hash_token("twos"),), max_concurrent=2),
    Token("slow", (hash_token("slows"),), max_requests_per_s=0.001),
    Token("bulk", (hash_token("bulks"),), max_requests_per_s=0.001),
)
ALICE, ROOT, TWO, SLOW, BULK = (
    (("authorization", f"Bearer {secret}"),)
    for secret in ("alices", "roots", "twos", "slows", "bulks")
)
GRAY = pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_GRAY_PNG)


class Guarded:
    """A server with tokens, administration and small limits, and its files."""

    def __init__(self, folder: Path) -> None:
        self.tokens, self.config = folder / "tokens.toml", folder / "gradcam.toml"
        self.write_tokens(*TOKENS)
        self.write_config()
        self.running = RunningServer("--config", str(self.config))

    def write_tokens(self, *tokens: Token) -> None:
        replace(self.tokens, "\n".join(map(to_toml, tokens)).encode())

    def write_config(self, formats: int = 2, more: str = "") -> None:
        replace(
            self.config, (CONFIG.format(model=exported_model(), formats=formats) + more).encode()
        )

    @property
    def address(self) -> str:
        return self.running.address

    @property
    def admin_address(self) -> str:
        found = re.search(r"Administered on (\S+)", self.running.text)
        assert found
        return found[1]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    server = Guarded(tmp_path_factory.mktemp("guarded"))
    try:
        server.running.wait_ready()
        yield server
        assert "Traceback" not in server.running.text, server.running.text
        assert server.running.stop() == 0
    finally:
        server.running.kill()


@pytest.fixture
def stub(guarded: Guarded) -> Iterator[Any]:
    with connect(guarded.address) as channel:
        yield pb_grpc.ExplanationServiceStub(channel)


class OpenStream:
    """A stream that the server has begun to answer, and that stays open."""

    def __init__(self, channel: Any, metadata: Any) -> None:
        self._items: SimpleQueue[pb.StreamExplainImagesRequest | None] = SimpleQueue()
        stub = pb_grpc.ExplanationServiceStub(channel)
        self.call = stub.StreamExplainImages(
            iter(self._items.get, None), metadata=metadata, timeout=120
        )
        self.send(pb.ExplainImageRequest())

    def opened(self) -> "OpenStream":
        assert next(self.call).error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        return self

    def send(self, request: pb.ExplainImageRequest) -> None:
        self._items.put(pb.StreamExplainImagesRequest(request=request))

    def finish(self) -> list[pb.StreamExplainImagesResponse]:
        self._items.put(None)
        return list(self.call)


# Tokens.


def test_calls_need_a_token_that_is_known(guarded: Guarded, stub: Any, cat_jpeg: bytes) -> None:
    """Unary calls, streams and the other protocol alike; the reason says what to send."""
    request = pb.ExplainImageRequest(encoded_image=cat_jpeg)
    for metadata in ((), (("authorization", "Bearer guess"),)):
        error = failure(stub.ExplainImage, request, metadata=metadata)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        stream = stub.StreamExplainImages(iter([]), metadata=metadata)
        assert stream.code() is grpc.StatusCode.UNAUTHENTICATED
        with connect(guarded.address) as channel:
            other = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert failure(other, b"", metadata=metadata).code().name == "UNAUTHENTICATED"
    assert (
        "authorization: Bearer TOKEN" in failure(stub.ListModels, pb.ListModelsRequest()).details()
    )
    answer = stub.ExplainImage(request, metadata=ALICE)
    assert answer.predictions[0].class_index == 285


def test_health_is_open_and_reflection_is_not(guarded: Guarded) -> None:
    """Probes need no token; reflection does, and does not list the admin service."""
    with connect(guarded.address) as channel:
        check: Any = health_pb2_grpc.HealthStub(channel)
        assert check.Check(health_pb2.HealthCheckRequest()).status == 1
        reflect: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        assert reflect(iter([ask])).code() is grpc.StatusCode.UNAUTHENTICATED
        answer = next(iter(reflect(iter([ask]), metadata=ALICE)))
        names = {service.name for service in answer.list_services_response.service}
    assert "gradcam.v1.ExplanationService" in names
    assert not any("admin" in name for name in names)


def test_tokens_are_replaced_under_load_without_a_failed_request(guarded: Guarded) -> None:
    """With the old, both, then the new token in the file, calls with a valid token never fail."""
    secret, stop = ["alices"], threading.Event()
    codes: Counter[str] = Counter()

    def ask() -> None:
        with connect(guarded.address) as channel:
            stub = pb_grpc.ExplanationServiceStub(channel)
            while not stop.is_set():
                metadata = (("authorization", f"Bearer {secret[0]}"),)
                try:
                    stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=TIMEOUT_S)
                    codes["OK"] += 1
                except grpc.RpcError as error:
                    codes[str(error)] += 1

    def both(*secrets: str) -> None:
        hashes = ", ".join(f'"{hash_token(one)}"' for one in secrets)
        others = "\n".join(map(to_toml, TOKENS[1:]))
        entry = f'[[tokens]]\nname = "alice"\nsha256 = [{hashes}]\n'
        replace(guarded.tokens, (entry + others).encode())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(10):
            new = f"alices {round_}".replace(" ", "-")
            both(secret[0], new)
            time.sleep(0.05)
            secret[0] = new
            time.sleep(0.3)  # requests on their way with the old one
            both(new)
            guarded.tokens.with_name("broken").write_text("[[tokens")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        guarded.write_tokens(*TOKENS)
    assert set(codes) == {"OK"}, codes
    assert codes["OK"] > 50


def test_a_removed_token_is_refused_at_once(guarded: Guarded, stub: Any) -> None:
    """Calls on an open connection are refused, too."""
    ask = pb.ListModelsRequest()
    stub.ListModels(ask, metadata=ALICE)
    try:
        guarded.write_tokens(*TOKENS[1:])
        error = failure(stub.ListModels, ask, metadata=ALICE)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        stub.ListModels(ask, metadata=ROOT)
    finally:
        guarded.write_tokens(*TOKENS)
    stub.ListModels(ask, metadata=ALICE)


def test_the_rate_of_a_token_is_exact(stub: Any, guarded: Guarded) -> None:
    """One of ten calls passes at 0.001 per second; the others get RetryInfo."""
    ask = pb.ListModelsRequest()
    stub.ListModels(ask, metadata=SLOW)
    for _ in range(9):
        error = failure(stub.ListModels, ask, metadata=SLOW)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 900 < retry_after_s(error) <= 1000
    stub.ListModels(pb.ListModelsRequest(), metadata=ALICE)


def test_each_image_of_a_call_counts_for_the_rate(guarded: Guarded, cat_jpeg: bytes) -> None:
    """A ModelInfer call of three images counts as three calls."""
    message = inference_pb.ModelInferRequest(model_name="efficientnet-lite0")
    message.inputs.add(name="encoded_image", datatype="BYTES", shape=[3])
    message.raw_input_contents.append((struct.pack("<I", len(cat_jpeg)) + cat_jpeg) * 3)
    with connect(guarded.address) as channel:
        stub = inference_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ModelInfer(message, metadata=BULK, timeout=TIMEOUT_S).outputs
        assert 2900 < retry_after_s(failure(stub.ModelInfer, message, metadata=BULK)) <= 3000


def test_the_calls_of_a_token_at_once_are_exact(guarded: Guarded, stub: Any) -> None:
    """With two open calls the third is refused, until one ends; other tokens are not affected."""
    ask = pb.ListModelsRequest()
    with connect(guarded.address) as channel:
        open_ones = [OpenStream(channel, TWO).opened() for _ in range(2)]
        for _ in range(5):
            error = failure(stub.ListModels, ask, metadata=TWO)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert retry_after_s(error) > 0
        stub.ListModels(ask, metadata=ALICE)
        assert open_ones[0].finish() == []
        stub.ListModels(ask, metadata=TWO)
        open_ones[1].finish()


def test_metrics_count_by_the_tokens_name(guarded: Guarded, stub: Any) -> None:
    """Labels are the token's name and the code; neither tokens nor unknown names."""
    stub.ListModels(pb.ListModelsRequest(), metadata=ALICE)
    guess = (("authorization", "Bearer eves-guess"),)
    failure(stub.ListModels, pb.ListModelsRequest(), metadata=guess)
    found = re.search(r"http://\S+/metrics", guarded.running.text)
    assert found, guarded.running.text
    with urllib.request.urlopen(found[0]) as answer:
        text = answer.read().decode()
    counts = {
        frozenset(re.findall(r'(\w+="[^"]*")', labels)): float(count)
        for labels, count in re.findall(r"gradcam_token_requests_total\{(.*)\} (\S+)", text)
    }
    assert counts[frozenset({'token="alice"', 'code="OK"'})] >= 1
    assert counts[frozenset({'token=""', 'code="UNAUTHENTICATED"'})] >= 1
    for secret in ("eves-guess", "alices"):
        assert secret not in text + guarded.running.text


# Administration.


def test_administration_is_apart_and_for_admins(guarded: Guarded) -> None:
    """The admin service is not on the public port, and needs an admin's token."""
    with connect(guarded.address) as channel:
        public = admin_grpc.AdminServiceStub(channel)
        error = failure(public.Reload, admin_pb.ReloadRequest(), metadata=ROOT)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    with connect(guarded.admin_address) as channel:
        admin = admin_grpc.AdminServiceStub(channel)
        for metadata, code in (((), "UNAUTHENTICATED"), (ALICE, "PERMISSION_DENIED")):
            error = failure(admin.Reload, admin_pb.ReloadRequest(), metadata=metadata)
            assert error.code().name == code
        explain = pb_grpc.ExplanationServiceStub(channel)
        error = failure(explain.ListModels, pb.ListModelsRequest(), metadata=ROOT)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    host, port = guarded.admin_address.split(":")
    assert host == "127.0.0.1"
    with socket.socket() as elsewhere, pytest.raises(OSError, match="refused"):
        elsewhere.connect(("127.0.0.2", int(port)))


def test_a_reload_answers_when_the_new_models_serve(guarded: Guarded, stub: Any) -> None:
    """The answer lists the served models, and the settings that need a restart."""
    guarded.write_config(1, "drain_timeout_s = 5\n")
    try:
        with connect(guarded.admin_address) as channel:
            admin = admin_grpc.AdminServiceStub(channel)
            answer = admin.Reload(admin_pb.ReloadRequest(), metadata=ROOT, timeout=240)
        assert [model.name for model in answer.models] == ["efficientnet-lite0"]
        assert list(answer.unchanged_settings) == ["drain_timeout_s"]
        request = pb.ExplainImageRequest(encoded_image=b"x", heatmaps=[GRAY] * 2)
        error = failure(stub.ExplainImage, request, metadata=ALICE)
        assert "2 heatmaps; a request may have 1 here" in error.details()
    finally:
        guarded.write_config()
    done = subprocess.run(
        [GRADCAM, "reload", guarded.admin_address],
        env={"GRADCAM_TOKEN": "roots", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout == "efficientnet-lite0\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("nonsense = 1\n", "unknown nonsense; the keys are"),
        ('labels = ["missing.txt"]\n', "labels and input size are part of the export"),
        ('tracing = "x"\n', "tracing"),
    ],
)
def test_a_reload_that_fails_says_why_and_changes_nothing(
    guarded: Guarded, stub: Any, more: str, message: str
) -> None:
    """FAILED_PRECONDITION; the old models and tokens go on."""
    guarded.write_config(1, more)
    try:
        with connect(guarded.admin_address) as channel:
            admin = admin_grpc.AdminServiceStub(channel)
            error = failure(admin.Reload, admin_pb.ReloadRequest(), metadata=ROOT, timeout=240)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "the old models go on" in error.details()
        assert message in error.details()
        request = pb.ExplainImageRequest(encoded_image=b"x", heatmaps=[GRAY] * 2)
        error = failure(stub.ExplainImage, request, metadata=ALICE)
        assert "not a JPEG" in error.details()  # so two forms are still let in
    finally:
        guarded.write_config()


# Limits of a request and of a connection.


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"top_k": 6}, "top_k is 6; it must be 0 to 5 here"),
        ({"targets": [pb.Target(class_index=i) for i in range(6)]}, "6 targets; .* may have 5"),
        ({"layers": ["a", "b", "c"]}, "3 layers; a request may have 2 here"),
        (
            {"heatmaps": [pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_GRAY_PNG)] * 3},
            "3 heatmaps; a request may have 2 here",
        ),
        (
            {"raw_image": pb.RawImage(height_px=1001, width_px=1000)},
            "1000 x 1001 = 1001000 pixels are more than this server's limit of 1000000",
        ),
    ],
)
def test_large_requests_are_refused(stub: Any, request_: dict[str, Any], message: str) -> None:
    """They are refused before any work, with the limit in the error."""
    request = pb.ExplainImageRequest(**{"encoded_image": b"x", **request_})
    error = failure(stub.ExplainImage, request, metadata=ALICE)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, error.details())


def test_large_messages_are_refused(stub: Any, cat_jpeg: bytes) -> None:
    """RESOURCE_EXHAUSTED without RetryInfo, by gRPC itself; without a token it is not even read."""
    request = pb.ExplainImageRequest(encoded_image=cat_jpeg + bytes(1 << 20))
    error = failure(stub.ExplainImage, request, metadata=ALICE)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
    assert rpc_status.from_call(error) is None
    assert failure(stub.ExplainImage, request).code() is grpc.StatusCode.UNAUTHENTICATED


def test_large_metadata_and_names_do_no_harm(stub: Any) -> None:
    """Metadata over 16 KiB is refused; of a long name the answer quotes the beginning."""
    metadata = (*ALICE, ("x-long", "x" * 17_000))
    error = failure(stub.ListModels, pb.ListModelsRequest(), metadata=metadata)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    request = pb.ExplainImageRequest(encoded_image=b"x", model="\N{SNOWMAN}" * 300_000)
    error = failure(stub.ExplainImage, request, metadata=ALICE)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("unknown model '\N{SNOWMAN}")
    assert error.details().endswith(" ...")


def test_one_connection_has_so_many_calls_at_once(guarded: Guarded, stub: Any) -> None:
    """The fifth call waits for one of four to end; other connections do not wait."""
    ask = pb.ListModelsRequest()
    with connect(guarded.address) as channel:
        open_ones = [OpenStream(channel, ALICE).opened() for _ in range(4)]
        fifth = pb_grpc.ExplanationServiceStub(channel).ListModels.future(
            ask, metadata=ALICE, timeout=60
        )
        for _ in range(20):
            stub.ListModels(ask, metadata=ALICE, timeout=TIMEOUT_S)
        assert not fifth.done()
        open_ones[0].finish()
        assert fifth.result().models
        for one in open_ones[1:]:
            one.finish()


def test_all_connections_have_so_many_streams(guarded: Guarded, stub: Any) -> None:
    """The seventh stream is refused with RetryInfo; unary calls go on."""
    with ExitStack() as connections:
        channels = [connections.enter_context(connect(guarded.address)) for _ in range(3)]
        open_ones = [OpenStream(channels[i % 2], ALICE).opened() for i in range(6)]
        refused = OpenStream(channels[2], ALICE).call
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "6 streams are open" in refused.details()
        stub.ListModels(pb.ListModelsRequest(), metadata=ALICE)
        for one in open_ones:
            one.finish()
        OpenStream(channels[2], ALICE).opened().finish()


def test_a_slow_reader_does_not_block_others(guarded: Guarded, stub: Any, cat_jpeg: bytes) -> None:
    """Megabytes of unread answers do not block other clients, and all arrive at last."""
    big = [pb.HEATMAP_FORMAT_IMAGE_FLOAT32, pb.HEATMAP_FORMAT_OVERLAY_PNG]
    request = pb.ExplainImageRequest(
        encoded_image=cat_jpeg, heatmaps=[pb.HeatmapRequest(format=one) for one in big]
    )
    with connect(guarded.address) as channel:
        slow = OpenStream(channel, ALICE).opened()
        for _ in range(100):
            slow.send(request)
        small = pb.ExplainImageRequest(encoded_image=cat_jpeg)
        for _ in range(20):
            stub.ExplainImage(small, metadata=ALICE, timeout=TIMEOUT_S)
        answers = slow.finish()
    assert len(answers) == 100
    assert all(answer.response.explanations for answer in answers)


# Starting.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "--host 0.0.0.0 is not loopback .* or --allow-insecure"),
        (("--http-port", "0", "--http-host", "::"), "--http-host :: is not loopback"),
        (("--token-file", "missing.toml"), "--token-file missing.toml: .*No such file"),
        (("--tls-certificate", "missing.pem"), "both --tls-certificate and --tls-key"),
        (("--tls-certificate", "a", "--tls-key", "b"), "must be a PEM certificate"),
    ],
)
def test_an_unsafe_start_is_refused(options: tuple[str, ...], message: str) -> None:
    """The exit status is 1, with what is right, before the port opens; --check does the same."""
    for check in ((), ("--check",)):
        ended = subprocess.run(
            [GRADCAM, "serve", "--port", "0", *quick(), *options, *check],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 1
        assert re.search(message, ended.stderr), ended.stderr
        assert "Traceback" not in ended.stderr
        assert "Listening on" not in ended.stderr
