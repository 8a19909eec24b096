"""A fixture for tests that listen in this process."""

import pytest

from gradcam.inference import grpc_service_pb2_grpc as inference_grpc
from gradcam_server.transport.open_inference import service as open_inference


@pytest.fixture
def beside_tritonclient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a server listen in a process that has imported tritonclient.

    Reflection wants the messages of the Open Inference Protocol in the default pool, where
    tritonclient, which other tests import, has its own of the same names.
    """
    monkeypatch.setattr(
        open_inference, "add_to_server", inference_grpc.add_GRPCInferenceServiceServicer_to_server
    )
