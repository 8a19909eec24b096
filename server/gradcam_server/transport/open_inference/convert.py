"""Converts between the tensors of the Open Inference Protocol and the domain's types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.domain.requests import ExplainedImage, ExplainRequest, Method, Target, TopK
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.open_inference.tensors import read_images

LOGITS = "logits"
PROBABILITIES = "probabilities"
HEATMAP = "heatmap"
OUTPUTS = (LOGITS, PROBABILITIES, HEATMAP)
UNVERSIONED = "1"
"""The protocol's version of a model without a version."""

_NUMBERS = ("int64_param", "uint64_param")
_PARAMETERS = {
    "class": ("string_param", *_NUMBERS),
    "method": ("string_param",),
    "layer": ("string_param",),
    "priority": _NUMBERS,
    "timeout": _NUMBERS,
    # Sent by Triton's clients on streams. Here each request has exactly one response.
    "triton_enable_empty_final_response": ("bool_param",),
}
_SHOWN_PARAMETERS = tuple(name for name in _PARAMETERS if not name.startswith("triton_"))
_MAX_PRIORITY = 2**31 - 1


@dataclass(frozen=True)
class InferRequest:
    """A parsed ``ModelInferRequest``.

    Attributes:
        images: One request for each image.
        outputs: Names of the requested outputs, in the order of the request.
    """

    images: tuple[ExplainRequest, ...]
    outputs: tuple[str, ...]


def to_request(
    message: pb.ModelInferRequest,
    model: str,
    version: str,
    *,
    caller: str = "",
    deadline: float | None = None,
) -> InferRequest:
    """Reads a request.

    Args:
        message: The request.
        model: The model's name.
        version: The model's version in the catalog; empty if it has none.
        caller: Whose share of the server the request uses.
        deadline: Time of ``perf_counter`` at which the call ends; the parameter
            ``timeout`` may only make it earlier.

    Raises:
        InvalidRequestError: An input, output or parameter is unknown or wrong.
    """
    outputs = _outputs(message)
    given = {name: _parameter(message, name) for name in message.parameters}
    explanation = _explanation(given)
    # Without a heat map, its parameters would only choose a more expensive graph.
    common = replace(
        explanation if HEATMAP in outputs else ExplainRequest(b"", targets=TopK(0)),
        model=model,
        model_version=version,
        prediction_count=0,
        priority=_priority(given.get("priority")),
        deadline=_deadline(given.get("timeout"), deadline),
        caller=caller,
    )
    images = read_images(message)
    return InferRequest(tuple(replace(common, image=image) for image in images), outputs)


def to_response(
    message: pb.ModelInferRequest, outputs: Sequence[str], explained: Sequence[ExplainedImage]
) -> pb.ModelInferResponse:
    """Writes the answer to a request.

    Args:
        message: The request, whose id is echoed.
        outputs: Names of the requested outputs.
        explained: The answer for each image, with one raw heat map if ``heatmap`` is requested.

    Returns:
        The requested outputs: ``logits`` and ``probabilities`` FP32 [images, classes],
        ``heatmap`` FP32 [images, height, width] at the layer's resolution, >= 0.
    """
    response = pb.ModelInferResponse(
        model_name=explained[0].model,
        model_version=explained[0].model_version or UNVERSIONED,
        id=message.id,
    )
    for name in outputs:
        values = np.stack([_output(name, image) for image in explained])
        response.outputs.add(name=name, datatype="FP32", shape=values.shape)
        response.raw_output_contents.append(values.astype("<f4", copy=False).tobytes())
    return response


def _output(name: str, explained: ExplainedImage) -> NDArray[np.float32]:
    if name == LOGITS:
        return explained.logits
    if name == PROBABILITIES:
        return explained.probabilities
    heatmap = explained.explanations[0].heatmaps[0]
    return np.frombuffer(heatmap.data, "<f4").reshape(heatmap.height, heatmap.width)


def _outputs(message: pb.ModelInferRequest) -> tuple[str, ...]:
    names = [output.name for output in message.outputs]
    for output in message.outputs:
        if output.name not in OUTPUTS:
            raise InvalidRequestError(
                "outputs.name",
                f"unknown output {output.name!r}; there are: {', '.join(OUTPUTS)}",
            )
        if output.parameters:
            raise InvalidRequestError(
                "outputs.parameters",
                f"output {output.name!r} has parameters ({', '.join(sorted(output.parameters))}); "
                "an output has none here: shared memory and classification are not supported",
            )
    if len(set(names)) != len(names):
        raise InvalidRequestError("outputs.name", "an output is requested twice")
    return tuple(names) or OUTPUTS


def _parameter(message: pb.ModelInferRequest, name: str) -> str | int | bool:
    if name not in _PARAMETERS:
        raise InvalidRequestError(
            "parameters",
            f"unknown parameter {name!r}; there are: {', '.join(_SHOWN_PARAMETERS)}",
        )
    parameter = message.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in _PARAMETERS[name]:
        raise _invalid(
            name, f"it has {kind or 'no value'}; it must have {' or '.join(_PARAMETERS[name])}"
        )
    return getattr(parameter, kind)


def _explanation(given: Mapping[str, str | int | bool]) -> ExplainRequest:
    """Reads the options of the heat map, without the image."""
    method = given.get("method", ExplainRequest.method)
    if method not in set(Method):
        raise _invalid("method", f"it is {method!r}; it must be one of: {', '.join(Method)}")
    return ExplainRequest(
        image=b"",
        targets=(Target(given["class"]),) if "class" in given else TopK(),
        layers=(str(given["layer"]),) if "layer" in given else (),
        method=Method(method),
    )


def _priority(given: str | int | bool | None) -> int:
    """Reads a priority. As in Triton 1 is the highest, and 0 is the default: here 1."""
    priority = int(given or ExplainRequest.priority)
    if not 1 <= priority <= _MAX_PRIORITY:
        raise _invalid("priority", f"it is {priority}; it must be 0 to {_MAX_PRIORITY}")
    return priority


def _deadline(given: str | int | bool | None, deadline: float | None) -> float | None:
    """Returns the earlier of the call's deadline and a timeout in microseconds (0: no timeout)."""
    timeout_us = int(given or 0)
    if timeout_us < 0:
        raise _invalid("timeout", f"it is {timeout_us} microseconds; it must not be negative")
    if not timeout_us:
        return deadline
    timed_out = perf_counter() + timeout_us / 1e6
    return timed_out if deadline is None else min(deadline, timed_out)


def _invalid(parameter: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"parameters.{parameter}", f"parameter {parameter!r}: {message}")
