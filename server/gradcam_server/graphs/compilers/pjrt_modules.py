"""StableHLO modules: reads, checks and edits their operations. Free of TensorFlow.

A module is a portable artifact, the bytes that StableHLO promises to read in later versions. Its
function ``main`` takes images, classes and the classes to contrast them with, and then weights; it
returns the outputs of a graph.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from jax.interpreters import mlir
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import stablehlo

from gradcam_server.domain.graph_io import INPUTS

# How all artifacts begin; the parser would also take text, and nothing at all.
_MAGIC = b"ML\xefR"

_DTYPES = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "i32": np.dtype(np.int32),
    "ui8": np.dtype(np.uint8),
}
_PRODUCTS = {"stablehlo.convolution", "stablehlo.dot", "stablehlo.dot_general"}
_DIALECTS = ("builtin.", "chlo.", "func.", "stablehlo.")
# They talk to the host, to other devices, or run code that is not in the module.
_REFUSED = {
    f"stablehlo.{name}"
    for name in (
        *("all_gather", "all_reduce", "all_to_all", "collective_broadcast", "collective_permute"),
        *("cross-replica-sum", "custom_call", "infeed", "outfeed", "recv", "reduce_scatter"),
        *("rng", "rng_bit_generator", "send"),
    )
}
# XLA replaces it by ordinary operations on every device: the eigenvectors of EigenGrad-CAM.
_CUSTOM_CALLS = {"Eigh"}


class ModuleError(ValueError):
    """Bytes are not a module that can be used; the message says why."""


@dataclass(frozen=True)
class TensorType:
    """The type of an input or output.

    Attributes:
        dtype: The type of its numbers.
        shape: Its sizes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype.name} {list(self.shape)}"


@dataclass(frozen=True)
class Signature:
    """What ``main`` takes and returns.

    Attributes:
        inputs: Images, classes and contrasted classes.
        weights: The further inputs.
        outputs: The outputs.
    """

    inputs: tuple[TensorType, ...]
    weights: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]


def from_text(text: str) -> bytes:
    """Makes a module of TensorFlow's text.

    Weights that are only used after a conversion to fewer bits are taken with these bits: half
    the size, and the same answers. Products of float32 numbers are marked to be computed in true
    float32. The module names no file and no machine.

    Raises:
        ModuleError: It has operations that not every device can run.
    """
    with _context():
        module = ir.Module.parse(text)
        attributes = module.operation.attributes
        for name in [name for name in map(_attribute_name, attributes) if name.startswith("mhlo.")]:
            del attributes[name]
        attributes["sym_name"] = ir.StringAttr.get("explain")
        passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(module.operation)
        _check(module)
        _narrow(_main(module))
        _set_product_precision(module, "HIGHEST")
        return _serialized(module)


def read_signature(artifact: bytes) -> Signature:
    """Reads and checks a module.

    Raises:
        ModuleError: It is not a StableHLO module, has operations that are not allowed, or other
            inputs and outputs than tensors of fixed sizes.
    """
    with _parsed(artifact) as module:
        _check(module)
        kind = _main(module).type
        inputs = [_tensor_type(one) for one in kind.inputs]
        outputs = [_tensor_type(one) for one in kind.results]
    count = len(INPUTS)
    return Signature(tuple(inputs[:count]), tuple(inputs[count:]), tuple(outputs))


def with_fast_products(artifact: bytes) -> bytes:
    """Returns a module whose float32 products may be rounded, to TF32 on GPUs that have it."""
    with _parsed(artifact) as module:
        _set_product_precision(module, "DEFAULT")
        return _serialized(module)


@contextmanager
def _context() -> Iterator[None]:
    """A context of MLIR; the reports that MLIR would print become the text of a ModuleError."""
    reports: list[str] = []

    def keep(report: Any) -> bool:
        reports.append(str(report.message))
        return True

    context = mlir.make_ir_context()
    handler = context.attach_diagnostic_handler(keep)
    try:
        with context, ir.Location.unknown():
            yield
    except ModuleError:
        raise
    except Exception as error:
        reason = "; ".join(reports) or str(error)
        raise ModuleError(f"it is not a StableHLO module: {reason}") from error
    finally:
        handler.detach()


@contextmanager
def _parsed(artifact: bytes) -> Iterator[Any]:
    if not artifact.startswith(_MAGIC):
        raise ModuleError("it is not a StableHLO module: other first bytes")
    with _context():
        yield stablehlo.deserialize_portable_artifact(ir.Context.current, artifact)


def _serialized(module: Any) -> bytes:
    artifact: bytes = stablehlo.serialize_portable_artifact(module, stablehlo.get_minimum_version())
    return artifact


def _main(module: Any) -> Any:
    for operation in module.body.operations:
        if operation.name.value == "main":
            return operation
    raise ModuleError("it has no function main")


def _operations(module: Any) -> list[Any]:
    found = []

    def visit(operation: Any) -> Any:
        found.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def _check(module: Any) -> None:
    for operation in _operations(module):
        name = operation.name
        if not name.startswith(_DIALECTS):
            raise ModuleError(f"its operation {name} is not of StableHLO")
        if name == "stablehlo.custom_call":
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
            if target not in _CUSTOM_CALLS:
                raise ModuleError(f"it calls {target!r}, which is not part of StableHLO")
        elif name in _REFUSED:
            raise ModuleError(f"its operation {name} is not allowed")


def _narrow(main: Any) -> None:
    """Takes weights in the type that they are converted to, if that has fewer bits."""
    block = main.body.blocks[0]
    for weight in list(block.arguments)[len(INPUTS) :]:
        uses = [use.owner for use in weight.uses]
        kinds = {str(use.results[0].type) for use in uses if use.name == "stablehlo.convert"}
        if len(kinds) != 1 or any(use.name != "stablehlo.convert" for use in uses):
            continue
        kind = uses[0].results[0].type
        if str(ir.RankedTensorType(kind).element_type) not in {"bf16", "f16"}:
            continue
        weight.set_type(kind)
        for use in uses:
            use.results[0].replace_all_uses_with(weight)
            use.erase()
    inputs = [argument.type for argument in block.arguments]
    main.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(inputs, main.type.results)
    )


def _set_product_precision(module: Any, precision: str) -> None:
    for operation in _operations(module):
        if operation.name in _PRODUCTS and all(
            str(ir.RankedTensorType(operand.type).element_type) == "f32"
            for operand in operation.operands
        ):
            each = ir.Attribute.parse(f"#stablehlo<precision {precision}>")
            operation.attributes["precision_config"] = ir.ArrayAttr.get([each, each])


def _attribute_name(attribute: Any) -> str:
    return attribute if isinstance(attribute, str) else attribute.name


def _tensor_type(kind: Any) -> TensorType:
    try:
        tensor = ir.RankedTensorType(kind)
        return TensorType(_DTYPES[str(tensor.element_type)], _sizes(tensor))
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModuleError(
            f"main takes or returns {kind}, which is not a tensor of a fixed size"
        ) from error


def _sizes(tensor: Any) -> tuple[int, ...]:
    if not tensor.has_static_shape:
        raise ValueError(tensor)
    return tuple(tensor.shape)
