"""gRPC calls of tests, over connections of their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

TIMEOUT_S = 30


@contextmanager
def connect(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Any]:
    """Opens a channel with its own connection."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = (
        grpc.secure_channel(address, credentials, options)
        if credentials
        else grpc.insecure_channel(address, options)
    )
    with channel:
        yield channel


def failure(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Returns the error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **{"timeout": TIMEOUT_S, **options})
    return caught.value


def retry_after_s(error: Any) -> float:
    """Returns the retry delay of an error in seconds."""
    status = rpc_status.from_call(error)
    assert status
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return float(retry.retry_delay.ToMilliseconds() / 1000)
