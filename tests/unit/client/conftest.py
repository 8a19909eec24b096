"""A scripted server, and an answer with everything in it."""

from collections.abc import Iterator

import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import RetryPolicy
from unit.client.both import Connect, connect_async, connect_sync
from unit.client.fake_server import FakeServer, serving

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that listens."""
    with serving() as fake:
        yield fake


@pytest.fixture
def retry() -> RetryPolicy:
    """Does not keep a test waiting."""
    return RetryPolicy(max_attempts=4, initial_backoff_s=0.001, max_backoff_s=0.01)


@pytest.fixture
def heatmap_response() -> pb.ExplainImageResponse:
    """An answer with every form of a 2 x 3 heat map."""
    raw = pb.Heatmap(
        format=pb.HEATMAP_FORMAT_RAW_FLOAT32,
        height_px=2,
        width_px=3,
        data=b"\x00\x00\x80\x3f" * 5 + b"\x00\x00\x00\x40",  # 1, 1, 1, 1, 1, 2
        normalization=pb.NORMALIZATION_NONE,
        interpolation=pb.INTERPOLATION_NONE,
    )
    files = [
        pb.Heatmap(
            format=form,
            height_px=20,
            width_px=30,
            data=data,
            normalization=pb.NORMALIZATION_MAX,
            interpolation=pb.INTERPOLATION_BILINEAR,
        )
        for form, data in (
            (pb.HEATMAP_FORMAT_GRAY_PNG, b"grey png"),
            (pb.HEATMAP_FORMAT_OVERLAY_JPEG, b"overlay jpeg"),
            (pb.HEATMAP_FORMAT_OVERLAY_PNG, b"overlay png"),
        )
    ]
    return pb.ExplainImageResponse(
        model="resnet50",
        preprocessing="caffe",
        preprocessing_declared=True,
        image_height_px=20,
        image_width_px=30,
        predictions=[
            pb.Prediction(class_index=281, class_name="tabby", probability=0.75, logit=9.5),
            pb.Prediction(class_index=285, class_name="Egyptian cat", probability=0.25),
        ],
        explanations=[
            pb.Explanation(
                class_index=281,
                class_name="tabby",
                score=9.5,
                layer="conv5_block3_out",
                method=pb.METHOD_GRAD_CAM,
                raw_min=-0.5,
                raw_max=2.0,
                heatmaps=[raw, *files],
            )
        ],
        logits=[0.5, 1.5],
        stats=pb.ServingStats(
            decode_us=1,
            queue_us=2,
            compute_us=3,
            render_us=4,
            batch_size=5,
            padded_batch_size=8,
            pass_count=1,
            compile_us=6,
        ),
    )


@pytest.fixture
def other() -> Iterator[FakeServer]:
    """Another server that listens."""
    with serving() as fake:
        yield fake


@pytest.fixture(params=[connect_sync, connect_async], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Connects either client."""
    made: Connect = request.param
    return made
