"""A model's inputs and outputs, in the messages of the Open Inference Protocol and of Triton."""

from gradcam.inference import grpc_service_pb2 as pb
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.requests import Method
from gradcam_server.transport.open_inference.convert import (
    HEATMAP,
    LOGITS,
    PROBABILITIES,
    UNVERSIONED,
)
from gradcam_server.transport.open_inference.tensors import ENCODED_IMAGE, IMAGE, MAX_IMAGES

PLATFORM = "gradcam"

_DATATYPES = {pb.TYPE_UINT8: "UINT8", pb.TYPE_STRING: "BYTES", pb.TYPE_FP32: "FP32"}


def wire_version(model: ServedModel) -> str:
    """Returns a model's version in the protocol, where it is never empty."""
    return model.version or UNVERSIONED


def to_config(model: ServedModel) -> pb.ModelConfig:
    """Describes a model. Shapes are without the batch; -1 is any size."""
    height, width = model.input_size
    class_count = len(model.labels)
    layers = [layer.name for layer in model.layers if layer.explainable]
    texts = {
        "methods": ",".join(Method),
        "layers": ",".join(layers),
        "default_layer": model.default_layer,
        "input_size": f"{height}x{width}",
    }
    fp32 = pb.TYPE_FP32
    return pb.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        max_batch_size=MAX_IMAGES,
        input=[
            pb.ModelInput(
                name=IMAGE,
                data_type=pb.TYPE_UINT8,
                format=pb.ModelInput.FORMAT_NHWC,
                dims=[-1, -1, 3],
                optional=True,
            ),
            pb.ModelInput(name=ENCODED_IMAGE, data_type=pb.TYPE_STRING, dims=[1], optional=True),
        ],
        output=[
            pb.ModelOutput(name=LOGITS, data_type=fp32, dims=[class_count]),
            pb.ModelOutput(name=PROBABILITIES, data_type=fp32, dims=[class_count]),
            pb.ModelOutput(name=HEATMAP, data_type=fp32, dims=[-1, -1]),
        ],
        parameters={name: pb.ModelParameter(string_value=text) for name, text in texts.items()},
    )


def to_metadata(model: ServedModel) -> pb.ModelMetadataResponse:
    """Describes a model briefly. Shapes begin with the batch; -1 is any size."""
    config = to_config(model)
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=[wire_version(model)],
        platform=PLATFORM,
        inputs=[_tensor(tensor) for tensor in config.input],
        outputs=[_tensor(tensor) for tensor in config.output],
    )


def _tensor(
    tensor: pb.ModelInput | pb.ModelOutput,
) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=_DATATYPES[tensor.data_type], shape=[-1, *tensor.dims]
    )
