"""TLS, tokens, limits and administration of the real server process."""

import re
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from gradcam.admin.v1 import admin_service_pb2 as admin_pb
from gradcam.admin.v1 import admin_service_pb2_grpc as admin_grpc
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.security.tokens import Token, hash_token, to_toml
from support.certificates import Authority, replace
from support.server import GRADCAM, RunningServer

QUICK = ("--model", "efficientnet-lite0", "--compiler", "tensorflow", "--batch-sizes", "1,4")
CONFIG = """
model = ["efficientnet-lite0"]
compiler = "tensorflow"
batch_sizes = [1, 4]
max_targets = {targets}
max_layers = 2
max_formats = 2
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
)
ALICE, ROOT, TWO, SLOW = (
    (("authorization", f"Bearer {secret}"),) for secret in ("alices", "roots", "twos", "slows")
)
TIMEOUT_S = 30
GRAY = pb.HeatmapRequest(format=pb.HEATMAP_FORMAT_GRAY_PNG)


class Guarded:
    """A server with tokens, administration and small limits, and its files."""

    def __init__(self, folder: Path) -> None:
        self.tokens, self.config = folder / "tokens.toml", folder / "gradcam.toml"
        self.write_tokens(*TOKENS)
        self.write_config(5)
        self.running = RunningServer("--config", str(self.config))

    def write_tokens(self, *tokens: Token) -> None:
        replace(self.tokens, "\n".join(map(to_toml, tokens)).encode())

    def write_config(self, targets: int, more: str = "") -> None:
        replace(self.config, (CONFIG.format(targets=targets) + more).encode())

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


@contextmanager
def connect(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Any]:
    """Opens a channel with a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = (
        grpc.secure_channel(address, credentials, options)
        if credentials
        else grpc.insecure_channel(address, options)
    )
    with channel:
        yield channel


@pytest.fixture
def stub(guarded: Guarded) -> Iterator[Any]:
    with connect(guarded.address) as channel:
        yield pb_grpc.ExplanationServiceStub(channel)


def failure(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Returns the error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **{"timeout": TIMEOUT_S, **options})
    return caught.value


def retry_after_s(error: Any) -> float:
    status = rpc_status.from_call(error)
    assert status
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return float(retry.retry_delay.ToMilliseconds() / 1000)


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
    """Probes have no token; the list of services is for callers, and has no administration."""
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
    """Old, then old and new, then new: who always has a valid one notices nothing."""
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
    """On a connection that is open already."""
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
    """One of ten passes at a thousandth per second; the others are told when to come back."""
    ask = pb.ListModelsRequest()
    stub.ListModels(ask, metadata=SLOW)
    for _ in range(9):
        error = failure(stub.ListModels, ask, metadata=SLOW)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 900 < retry_after_s(error) <= 1000
    stub.ListModels(pb.ListModelsRequest(), metadata=ALICE)


def test_the_calls_of_a_token_at_once_are_exact(guarded: Guarded, stub: Any) -> None:
    """Two are open, so the third is refused, until one ends; other tokens are not hit."""
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
    """The name and the code; no token, and no name that a caller made up."""
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
    """Not on the public port, and not for a public token."""
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
    """With what is served now, and with the settings that need a restart."""
    guarded.write_config(3, "drain_timeout_s = 5\n")
    try:
        with connect(guarded.admin_address) as channel:
            admin = admin_grpc.AdminServiceStub(channel)
            answer = admin.Reload(admin_pb.ReloadRequest(), metadata=ROOT, timeout=240)
        assert [model.name for model in answer.models] == ["efficientnet-lite0"]
        assert list(answer.unchanged_settings) == ["drain_timeout_s"]
        error = failure(
            stub.ExplainImage, pb.ExplainImageRequest(encoded_image=b"x", top_k=4), metadata=ALICE
        )
        assert "must be 0 to 3" in error.details()
    finally:
        guarded.write_config(5)
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
        ('weights = ["missing.pth"]\n', "missing.pth"),
        ('tracing = "x"\n', "tracing"),
    ],
)
def test_a_reload_that_fails_says_why_and_changes_nothing(
    guarded: Guarded, stub: Any, more: str, message: str
) -> None:
    """FAILED_PRECONDITION; the old models and tokens go on."""
    guarded.write_config(2, more)
    try:
        with connect(guarded.admin_address) as channel:
            admin = admin_grpc.AdminServiceStub(channel)
            error = failure(admin.Reload, admin_pb.ReloadRequest(), metadata=ROOT, timeout=240)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "the old models go on" in error.details()
        assert message in error.details()
        models = stub.ListModels(pb.ListModelsRequest(), metadata=ALICE).models
        assert models[0].max_target_count == 5
    finally:
        guarded.write_config(5)


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
    """Before they cost anything, with the limit."""
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
    """The fifth waits for one of the four; other connections do not."""
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
    """The seventh is refused with RetryInfo; unary calls go on."""
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
    """Megabytes of answers that nobody reads; others are served, and at last all arrive."""
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


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\x06\0\0\0\0\0" + b"pingping"
GOAWAY, ENHANCE_YOUR_CALM = 7, 11


def test_a_flood_of_pings_ends_its_connection(guarded: Guarded, stub: Any) -> None:
    """GOAWAY with ENHANCE_YOUR_CALM, and nothing else happens."""
    host, port = guarded.address.split(":")
    with socket.create_connection((host, int(port)), TIMEOUT_S) as flood:
        flood.sendall(PREFACE + PING * 20)
        assert goaway_code(flood) == ENHANCE_YOUR_CALM
    stub.ListModels(pb.ListModelsRequest(), metadata=ALICE)


def goaway_code(connection: socket.socket) -> int:
    with connection.makefile("rb") as stream:
        while header := stream.read(9):
            length, kind = int.from_bytes(header[:3], "big"), header[3]
            payload = stream.read(length)
            if kind == GOAWAY:
                return int(struct.unpack(">I", payload[4:8])[0])
    raise AssertionError("the connection was closed without GOAWAY")


# TLS.


class Tls:
    """A server with TLS that need not be warm, its authority and its files."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.authority = folder, Authority("ours")
        self.certificate, self.key = self.authority.issue("one").write(folder, "server")
        files = ("--tls-certificate", str(self.certificate), "--tls-key", str(self.key))
        self.running = RunningServer(*QUICK, *files, *options)

    @property
    def address(self) -> str:
        return self.running.address

    def ask(self, credentials: grpc.ChannelCredentials | None = None) -> str:
        """Asks for health over a new connection; returns the code's name."""
        credentials = credentials or trusting(self.authority)
        with connect(self.address, credentials) as channel:
            return ask(channel)


def ask(channel: Any) -> str:
    health: Any = health_pb2_grpc.HealthStub(channel)
    try:
        health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def trusting(authority: Authority, client: Any = None) -> grpc.ChannelCredentials:
    """Credentials of a client, with a certificate or without."""
    if client is None:
        return grpc.ssl_channel_credentials(authority.certificate)
    return grpc.ssl_channel_credentials(authority.certificate, client.key, client.certificate)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    server = Tls(tmp_path_factory.mktemp("tls"))
    try:
        yield server
        assert "Traceback" not in server.running.text, server.running.text
        assert server.running.stop() == 0
    finally:
        server.running.kill()


def test_tls_is_spoken_and_the_authority_checked(tls: Tls) -> None:
    """A client that trusts ours connects; one that trusts another does not."""
    assert tls.ask() == "OK"
    assert tls.ask(trusting(Authority("another"))) == "UNAVAILABLE"
    assert tls.ask() == "OK"


def test_a_plain_client_fails_cleanly(tls: Tls) -> None:
    """UNAVAILABLE for it; nothing for the others, and no traceback in the log."""
    with connect(tls.address) as channel:
        assert ask(channel) == "UNAVAILABLE"
    assert tls.ask() == "OK"


def test_an_image_is_explained_over_tls(tls: Tls, cat_jpeg: bytes) -> None:
    """All the way, not only health."""
    tls.running.wait_for("Serving efficientnet-lite0", 180)
    with connect(tls.address, trusting(tls.authority)) as channel:
        stub = pb_grpc.ExplanationServiceStub(channel)
        answer = stub.ExplainImage(pb.ExplainImageRequest(encoded_image=cat_jpeg))
    assert answer.predictions[0].class_index == 285


def served_certificate(address: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), TIMEOUT_S) as connection,
        context.wrap_socket(connection) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
    assert der
    return ssl.DER_cert_to_PEM_cert(der)


def test_certificates_are_replaced_under_load_without_a_failed_request(tls: Tls) -> None:
    """New connections all the time; each certificate counts as soon as both its files are there.

    A broken one in between changes nothing.
    """
    stop, codes = threading.Event(), Counter[str]()

    def hammer() -> None:
        while not stop.is_set():
            codes[tls.ask()] += 1

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for count in range(5):
            pair = tls.authority.issue(f"number {count}")
            replace(tls.certificate, b"nonsense")
            time.sleep(0.2)
            replace(tls.certificate, pair.certificate)
            time.sleep(0.2)
            replace(tls.key, pair.key)
            assert served_certificate(tls.address) == pair.certificate.decode()
            time.sleep(0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(codes) == {"OK"}, codes
    assert codes["OK"] > 20
    assert "The old certificates stay" in tls.running.text
    assert "PRIVATE KEY" not in tls.running.text


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01"])
def test_half_open_connections_do_not_block_others(tls: Tls, guarded: Guarded, sent: bytes) -> None:
    """Silent, or stuck in the TLS greeting: others are served, and the server hangs up on them."""
    with ExitStack() as half_open:
        sockets = []
        for host, port in (address.split(":") for address in (tls.address, guarded.address)):
            for _ in range(200):
                connection = socket.create_connection((host, int(port)), TIMEOUT_S)
                sockets.append(half_open.enter_context(connection))
                connection.sendall(sent)
        assert [tls.ask() for _ in range(10)] == ["OK"] * 10
        assert [plain(guarded) for _ in range(10)] == ["OK"] * 10
        for one in sockets:
            with one.makefile("rb") as stream:
                stream.read()  # ends when the server hangs up, or fails after TIMEOUT_S


def plain(guarded: Guarded) -> str:
    with connect(guarded.address) as channel:
        return ask(channel)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tls, Authority, Path]]:
    folder, clients = tmp_path_factory.mktemp("mutual"), Authority("clients")
    ca = folder / "clients.pem"
    ca.write_bytes(clients.certificate)
    server = Tls(folder, "--tls-client-ca", str(ca), "--max-connection-age-s", "2")
    try:
        yield server, clients, ca
        assert "Traceback" not in server.running.text, server.running.text
        assert server.running.stop() == 0
    finally:
        server.running.kill()


def test_mutual_tls_refuses_clients_without_a_known_certificate(
    mutual: tuple[Tls, Authority, Path],
) -> None:
    """None, one of another authority, and one that the server's own authority has signed."""
    server, clients, _ = mutual
    assert server.ask(trusting(server.authority, clients.issue("alice"))) == "OK"
    for client in (None, Authority("eve").issue("alice"), server.authority.issue("alice")):
        assert server.ask(trusting(server.authority, client)) == "UNAVAILABLE"


def test_authorities_of_clients_are_replaced_and_old_connections_end(
    mutual: tuple[Tls, Authority, Path],
) -> None:
    """New connections are checked at once, open ones when they are --max-connection-age-s old."""
    server, clients, ca = mutual
    new = Authority("new clients")
    before = trusting(server.authority, clients.issue("alice"))
    after = trusting(server.authority, new.issue("alice"))
    with connect(server.address, before) as channel:
        assert ask(channel) == "OK"
        replace(ca, new.certificate)
        assert (server.ask(before), server.ask(after)) == ("UNAVAILABLE", "OK")
        deadline = time.monotonic() + 60
        while (code := ask(channel)) == "OK":
            assert time.monotonic() < deadline, "the old connection goes on"
            time.sleep(0.1)
        assert code == "UNAVAILABLE"
    replace(ca, clients.certificate)


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
    """Exit status 1 and what would be right, before anything listens; --check says the same."""
    for check in ((), ("--check",)):
        ended = subprocess.run(
            [GRADCAM, "serve", "--port", "0", *QUICK, *options, *check],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 1
        assert re.search(message, ended.stderr), ended.stderr
        assert "Traceback" not in ended.stderr
        assert "Listening on" not in ended.stderr
