"""A client for gradcam-server: predictions, and where the model looked.

    from gradcam_client import Client

    with Client("localhost:50051") as client:
        result = client.explain("cat.jpg", heatmaps=["raw", "overlay"])
        print(result.top.name, result.explanations[0].heatmap.shape)
        result.save("out.jpg")

        for outcome in client.explain_stream(["cat.jpg", "dog.jpg"], top_k=2):
            print(outcome.source, outcome.result.top.name if outcome.ok else outcome.error)

``AsyncClient`` has the same methods as coroutines. Errors are a ``GradCamError``;
``gradcam_client.errors`` draws their hierarchy.
"""

from gradcam_client.aio import AsyncClient
from gradcam_client.client import Client
from gradcam_client.errors import (
    CallCancelledError,
    DeadlineExceededError,
    GradCamError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
    UnauthenticatedError,
    UnavailableError,
)
from gradcam_client.extents import Extent
from gradcam_client.image_urls import ImageUrl
from gradcam_client.model_info import ClassInfo, LayerInfo, ModelInfo
from gradcam_client.requests import (
    ExplainOptions,
    GrayPng,
    HeatmapForm,
    ImageArray,
    ImageInput,
    OverlayJpeg,
    OverlayPng,
    Raw,
    SmoothGrad,
    build_request,
)
from gradcam_client.results import (
    Explanation,
    Heatmap,
    ImageExplanation,
    Prediction,
    ServingStats,
)
from gradcam_client.retry import RetryPolicy
from gradcam_client.security import tls_credentials, token_from_file
from gradcam_client.stream import Explained, Failed, Outcome, Progress
from gradcam_client.viewer import Viewer

__all__ = [
    "AsyncClient",
    "CallCancelledError",
    "ClassInfo",
    "Client",
    "DeadlineExceededError",
    "ExplainOptions",
    "Explained",
    "Explanation",
    "Extent",
    "Failed",
    "GradCamError",
    "GrayPng",
    "Heatmap",
    "HeatmapForm",
    "ImageArray",
    "ImageExplanation",
    "ImageInput",
    "ImageUrl",
    "InvalidRequestError",
    "LayerInfo",
    "MessageTooLargeError",
    "ModelInfo",
    "NotFoundError",
    "Outcome",
    "OverlayJpeg",
    "OverlayPng",
    "OverloadedError",
    "PermissionDeniedError",
    "Prediction",
    "Progress",
    "Raw",
    "RetryPolicy",
    "ServerError",
    "ServingStats",
    "SmoothGrad",
    "UnauthenticatedError",
    "UnavailableError",
    "Viewer",
    "build_request",
    "tls_credentials",
    "token_from_file",
]
