"""The application on Ray Serve answers as a server, by two replicas, one killed under load."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import (
    Client,
    DeadlineExceededError,
    GradCamError,
    NotFoundError,
    Progress,
    RetryPolicy,
    UnavailableError,
)
from gradcam_server.cli.local import LocalClient
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.options import Compiler

# The tests of the server, and of the commands that ask it, run here as they are; but for those
# that look into its process.
from integration.test_cli import (  # noqa: F401
    local,
    test_a_server_and_this_process_answer_alike,
    test_errors_in_json_have_code_and_message,
    test_health_is_an_exit_status,
    test_layers_of_a_server_agree,
    test_several_images_with_a_bad_one,
)
from integration.test_service import (  # noqa: F401
    assert_same,
    test_a_stream_dropped_in_the_middle_harms_nobody,
    test_a_stream_survives_bad_images_and_keeps_its_order,
    test_an_answer_that_may_take_too_much_memory_is_refused,
    test_an_oversized_message_is_named_and_not_retried,
    test_bad_images_harm_nothing_else,
    test_bad_options_get_clear_errors,
    test_classes_are_chosen_by_index_name_and_rank,
    test_clients_that_cancel_and_time_out_harm_nobody,
    test_every_form_is_answered_in_order,
    test_logits_come_when_asked_for,
    test_photographs_are_recognised,
    test_raw_pixels_give_what_their_file_gives,
    test_reflection_is_enough_to_use_the_service,
    test_resize_modes_see_the_cat_and_cover_the_whole_image,
    test_stats_add_up,
    test_the_heat_lies_on_the_object,
    test_unusual_images_are_fine,
)
from support.calls import connect, failure
from support.exported_model import exported_model
from support.ray_app import RunningRayApp

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'gradcam-server[ray]'")

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningRayApp]:
    """Two warm replicas behind a proxy that takes messages as large as a server does."""
    limit = str(ServeConfig().max_message_bytes)
    models = [
        {"name": "efficientnet-lite0"},
        {"name": "exported", "path": str(exported_model())},
    ]
    args = {"models": models, "compiler": "tensorflow", "batch_sizes": [1, 4]}
    running = RunningRayApp(args, RAY_SERVE_GRPC_MAX_MESSAGE_SIZE=limit)
    try:
        running.wait_ready()
        yield running
        assert "Internal error" not in running.text, running.text
    finally:
        running.kill()


@pytest.fixture(scope="module")
def client(server: RunningRayApp) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def test_two_models_are_served_at_once(client: Client, cat_jpeg: bytes) -> None:
    """A traced model and an export in each replica: both are listed, each answers for itself."""
    names = ["efficientnet-lite0", "exported"]
    assert [model.name for model in client.list_models()] == names
    assert client.get_model("exported").default_layer == "top_activation"
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda name: client.explain(cat_jpeg, model=name), names * 8))
    assert [answer.model for answer in answers] == names * 8
    assert {answer.top.index for answer in answers} == {285}


def test_health_is_asked_as_of_a_server(client: Client) -> None:
    """A replica answers grpc.health.v1."""
    assert client.health() == "SERVING"
    assert client.health("gradcam.v1.ExplanationService") == "SERVING"
    with pytest.raises(NotFoundError):
        client.health("gradcam.v2.ExplanationService")


def test_a_bad_image_has_the_details_that_a_server_gives(server: RunningRayApp) -> None:
    """The proxy passes on google.rpc.Status with the wrong field."""
    with connect(server.address) as channel:
        explain = pb_grpc.ExplanationServiceStub(channel).ExplainImage
        status = rpc_status.from_call(failure(explain, pb.ExplainImageRequest(encoded_image=b"x")))
    assert status
    violation = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(violation)
    assert violation.field_violations[0].field == "encoded_image"
    assert violation.field_violations[0].description == status.message


def test_a_call_ends_at_its_deadline(client: Client, cat_jpeg: bytes) -> None:
    """A call ends at its deadline even while it is computed, and the next call is answered."""
    with pytest.raises(DeadlineExceededError):
        client.explain(cat_jpeg, method="scorecam", timeout_s=0.1)
    assert client.explain(cat_jpeg).top.index == 285


def test_a_stream_reports_progress(client: Client, cat_jpeg: bytes) -> None:
    """Methods of many passes report progress while they compute."""
    told: list[Progress] = []
    (outcome,) = client.explain_stream([cat_jpeg], method="scorecam", on_progress=told.append)
    assert outcome.unwrap().top.index == 285
    assert told
    assert told[-1].total_passes >= told[-1].completed_passes


def crops(images: Path, count: int) -> list[bytes]:
    """Different parts of a photograph."""
    photo = cv2.imread(str(images / "espresso.jpg"))
    assert photo is not None
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        top, left = (int(number) for number in rng.integers(0, 100, 2))
        found.append(cv2.imencode(".png", photo[top : top + 200, left : left + 250])[1].tobytes())
    return found


def test_a_replica_killed_under_load_costs_no_answer(
    server: RunningRayApp, images: Path, cat_jpeg: bytes
) -> None:
    """Calls and streams are tried again, and each answer is the right one.

    Who does not try again is told UNAVAILABLE, though Ray itself says INTERNAL.
    """
    pictures = crops(images, 16)
    config = ServeConfig(
        model=("efficientnet-lite0",), compiler=Compiler.TENSORFLOW, batch_sizes=(1,)
    )
    with LocalClient(config) as here:
        expected = [one.unwrap() for one in here.explain_stream(pictures)]
    first, *_ = server.replicas()
    begun = threading.Barrier(12 + 1)
    until = time.monotonic() + 6

    def ask_again(number: int) -> int:
        with Client(server.address) as client:
            for count in itertools.count():
                if time.monotonic() > until:
                    return count
                place = (number + count) % len(pictures)
                assert_same(client.explain(pictures[place]), expected[place])
        raise AssertionError

    def stream(number: int) -> int:
        places = itertools.cycle(range(len(pictures)))
        sent = itertools.takewhile(lambda _: time.monotonic() < until, places)
        with Client(server.address) as client:
            outcomes = client.explain_stream(pictures[place] for place in sent)
            answers = [one.unwrap() for one in outcomes]
        for answer, place in zip(answers, itertools.cycle(range(len(pictures))), strict=False):
            assert_same(answer, expected[place])
        return len(answers)

    def ask_once(number: int) -> GradCamError | None:
        with Client(server.address, retry=ONCE) as client:
            client.list_models()
            begun.wait()
            try:
                client.explain(cat_jpeg, method="scorecam", timeout_s=240)
            except GradCamError as error:
                return error
        return None

    with ThreadPoolExecutor(24) as pool:
        # They take some seconds: both replicas have some of them.
        once = pool.map(ask_once, range(12))
        answered = [pool.submit(ask_again, number) for number in range(6)]
        answered += [pool.submit(stream, number) for number in range(2)]
        begun.wait()
        time.sleep(1)  # on a busy machine the calls take a moment to arrive
        first.kill()
        counts = [one.result() for one in answered]
        errors = [error for error in once if error is not None]
    assert min(counts) > 0, counts
    assert errors, "the replica that was killed had no call in work"
    assert {type(error) for error in errors} == {UnavailableError}
    assert all("replica" in error.message for error in errors)
    server.wait_for_replicas()
