"""TensorFlow SavedModels, as ``model.export`` of Keras 3 and ``model.save`` of Keras 2 write.

A SavedModel contains no layers, only a graph of operations. The calls of its signature are inlined,
and ``compute`` imports the result into the graph that is being built. The weights stay variables:
they are in memory once for all compiled batch sizes.

A custom gradient, as swish has in every Keras, is a function over tensors of the graph before
inlining. It is dropped, and the operations themselves are differentiated.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import (
    _run_inline_graph_optimization as inline_calls,
)

from gradcam_server.domain.layers import LayerInfo, has_positions
from gradcam_server.domain.options import Outputs, Precision
from gradcam_server.errors import CompilerError, StartupError, quote
from gradcam_server.models.ending import Ending, check_declared, judge, makes, run_on_probes
from gradcam_server.models.extents import IMAGE
from gradcam_server.models.graph_extents import cut_out, find_graph_extents
from gradcam_server.models.network import DEFAULT_INPUT_SIZE, OutputActivation
from gradcam_server.models.pixel_scaling import do_operations_scale

logger = logging.getLogger(__name__)

_SIGNATURE = "serving_default"
_CALLS = {"StatefulPartitionedCall", "PartitionedCall"}
_SAME_VALUES = {"Identity", "Cast", "Reshape", "Squeeze"}
_NOT_LISTED = {"Identity", "Placeholder", "ReadVariableOp"}
_ENDINGS = {
    "Softmax": OutputActivation.SOFTMAX,
    "LogSoftmax": OutputActivation.SOFTMAX,
    "Sigmoid": OutputActivation.SIGMOID,
}
_LINEAR = {"Conv2D", "Einsum", "MatMul"}
_LINEAR_COMBINATIONS = {"Add", "AddN", "AddV2", "BiasAdd", "ConcatV2", "Sub"}
_LINEAR_SCALINGS = {"Mul", "RealDiv"}
_CONSTANT = {"Const", "ReadVariableOp"}


class SavedModelNetwork:
    """The signature "serving_default" of a SavedModel, or its only one.

    Its layers are its floating-point operations with a (B, H, W, C) output. Their names are those
    of the graph, without calls and common prefixes; their types are TensorFlow's.

    Args:
        path: The folder.
        input_size: (height, width) in pixels, if the model leaves them open; 224 x 224 by default.
        outputs: The kind of the model's outputs, where they do not tell.

    Raises:
        StartupError: The model cannot be explained; the text says why.
    """

    def __init__(
        self,
        path: Path,
        input_size: tuple[int, int] | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        self._path = path
        self.head, self.can_reverse = None, False  # These need layers.
        try:
            self._model = tf.saved_model.load(str(path))  # It owns the variables.
        except Exception as error:
            raise StartupError(f"cannot load {path}: {quote(error)}") from error
        signatures = dict(self._model.signatures)
        if len(signatures) > 1 and _SIGNATURE in signatures:
            signatures = {_SIGNATURE: signatures[_SIGNATURE]}
        if len(signatures) != 1:
            raise self._error(f"it has no signature {_SIGNATURE!r}")
        (self._signature,) = signatures.values()
        self._graph = inline_calls(
            self._signature, lower_control_flow=False, aggressive_inlining=True
        )
        self._image = self._check_signature()
        self._drop_custom_gradients()
        self.input_size = self._choose_size(input_size)
        self._captures = self._find_captures()
        handles = {id(tensor) for tensor in self._captures.values()}
        self._variables = [
            variable for variable in self._signature.variables if id(variable.handle) in handles
        ]
        found = self._trace(outputs)
        self._tensors, self.layers, self._logits, self.class_count, self._ending = found
        self.output_activation = self._ending.activation

    def compute(
        self,
        inputs: tf.Tensor,
        layers: Sequence[str],
        precision: Precision = Precision.FLOAT32,
        *,
        is_reversed: bool = False,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Runs the network; see ``Network.compute``."""
        assert not is_reversed
        if precision is not Precision.FLOAT32:
            raise CompilerError("a SavedModel has its own precision; OpenVINO can change it")
        if tf.executing_eagerly():
            return tf.function(self.compute, autograph=False)(inputs, layers)
        *seen, logits = self._import(
            inputs, [*(self._tensors[name] for name in layers), self._logits]
        )
        logits = tf.cast(tf.reshape(logits, (-1, self.class_count)), tf.float32)
        return seen, self._ending.to_logits(logits)

    def _error(self, reason: str) -> StartupError:
        return StartupError(f"{self._path} cannot be explained: {reason}")

    def _check_signature(self) -> tf.Tensor:
        """Returns the placeholder of the images."""
        _, inputs = self._signature.structured_input_signature
        outputs = self._signature.outputs
        if len(inputs) != 1 or len(outputs) != 1:
            raise self._error(
                f"its signature has {len(inputs)} inputs and {len(outputs)} outputs; "
                "one of each is needed"
            )
        image = self._signature.inputs[0]
        if image.shape.rank != 4 or image.shape[3] not in {3, None}:
            raise self._error(
                f"its input must be (batch, height, width, 3), and is {tuple(image.shape or ())}"
            )
        if (size := image.shape[0]) is not None:
            raise self._error(
                f"its batch size is fixed at {size}, and images come in batches of other sizes: "
                "export it with an open batch size (an Input without batch_size, then "
                "model.export(FOLDER); or tf.TensorSpec((None, HEIGHT, WIDTH, 3)) as its signature)"
            )
        return image

    def _choose_size(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        fixed = self._image.shape[1:3]
        height, width = (
            size if own is None else own
            for own, size in zip(fixed, wanted or DEFAULT_INPUT_SIZE, strict=True)
        )
        if wanted not in {None, (height, width)}:
            raise StartupError(
                f"{self._path} takes images of {fixed[0]}x{fixed[1]}, which --input-size cannot "
                "change"
            )
        return height, width

    def _drop_custom_gradients(self) -> None:
        nodes = {node.name: node for node in self._graph.node}
        unknown = []
        for node in nodes.values():
            if node.attr.pop("_gradient_op_type", None) and node.op == "IdentityN":
                inner = nodes.get(node.input[0])
                factors = [nodes[name].op for name in inner.input if name in nodes] if inner else []
                if "Sigmoid" not in factors:  # Swish's is the derivative of its operations.
                    unknown.append(node.name)
        unknown += [
            node.name
            for function in self._graph.library.function  # The bodies of loops and branches.
            for node in function.node_def
            if node.attr.pop("_gradient_op_type", None)
        ]
        if unknown:
            logger.warning(
                "%s has custom gradients, which are ignored: explanations use the derivatives of "
                "its operations (%s)",
                *(self._path.name, ", ".join(_shortened(unknown))),
            )

    def _find_captures(self) -> dict[str, tf.Tensor]:
        """Removes the placeholders of variables from the graph; returns the variables by name."""
        used = {name for node in self._graph.node for name in node.input}
        captures = {
            placeholder.name: captured
            for placeholder, captured in zip(
                self._signature.graph.internal_captures,
                self._signature.captured_inputs,
                strict=True,
            )
            if placeholder.op.name in used
        }
        outside = {self._image.op.name, *(name.partition(":")[0] for name in captures)}
        nodes = [node for node in self._graph.node if node.name not in outside]
        for node in nodes:
            node.attr.pop("_class", None)  # Colocation, with nodes that may be gone.
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        return captures

    def _import(self, inputs: tf.Tensor, names: Sequence[str]) -> list[tf.Tensor]:
        """Copies the operations into the current graph and returns some of their outputs."""
        images = tf.ensure_shape(tf.cast(inputs, self._image.dtype), (None, *self.input_size, 3))
        graph = tf.compat.v1.get_default_graph()
        captured = {name: graph.capture(tensor) for name, tensor in self._captures.items()}
        for variable in self._variables:
            graph.watch_variable(variable)  # Else the graph can neither freeze nor save it.
        return tf.graph_util.import_graph_def(
            self._graph,
            input_map={self._image.name: images, **captured},
            return_elements=list(names),
            name="model",
        )

    def _compute_from(
        self, source: str, values: tf.Tensor, names: Sequence[str]
    ) -> Sequence[tf.Tensor]:
        """Computes the first outputs of operations from that of ``source``; see ``Compute``."""
        graph = cut_out(self._graph, names, source)
        used = {name.partition(":")[0] for node in graph.node for name in node.input}

        def run(given: tf.Tensor) -> list[tf.Tensor]:
            capture = tf.compat.v1.get_default_graph().capture
            mapped = {name: capture(tensor) for name, tensor in self._captures.items()}
            mapped[self._image.name] = tf.zeros((1, *self.input_size, 3), self._image.dtype)
            mapped[self._image.name if source == IMAGE else f"{source}:0"] = given
            return tf.graph_util.import_graph_def(
                graph,
                input_map={
                    n: tensor for n, tensor in mapped.items() if n.partition(":")[0] in used
                },
                return_elements=[f"{name}:0" for name in names],
                name="",
            )

        # One image at a time: the model may be made for single images.
        function = tf.function(run, autograph=False).get_concrete_function(values[:1])
        outputs = [function(value[None]) for value in values]
        return [tf.concat(of_operation, axis=0) for of_operation in zip(*outputs, strict=True)]

    def _trace(
        self, outputs: Outputs | None
    ) -> tuple[dict[str, str], tuple[LayerInfo, ...], str, int, Ending]:
        """Traces the graph once.

        Returns:
            The tensors by layer name, the layers, the tensor of the logits, the number of classes,
            and the ending.
        """
        names = [node.name for node in self._graph.node]
        made: dict[tf.Operation, str] = {}

        def run(inputs: tf.Tensor) -> None:
            made.update(zip(self._import(inputs, names), names, strict=True))

        specification = tf.TensorSpec((None, *self.input_size, 3), tf.float32)
        try:
            traced = tf.function(run, autograph=False).get_concrete_function(specification)
        except Exception as error:
            size = "x".join(map(str, self.input_size))
            raise self._error(
                f"it cannot be run with an input of {size}: {quote(error)}"
            ) from error
        end = self._signature.outputs[0].op.name
        output = next(made_by.outputs[0] for made_by, name in made.items() if name == end)
        shape = tuple(output.shape) if output.shape.rank else ()
        if len(shape) != 2 or shape[1] is None:
            raise self._error(f"its output must be (batch, classes), and is {shape}")
        logits, ending = self._find_logits(output, shape[1], made, outputs)
        between = _after(traced.inputs[0].op) & _before(logits)
        self._refuse_channels_first(between)
        # Integers can only be unscaled pixels.
        self.scales_pixels = not self._image.dtype.is_floating or do_operations_scale(
            traced.inputs[0], between
        )
        tensors, layers = self._list_layers(traced.graph, made, between)
        return tensors, layers, _name_in(made, logits), shape[1], ending

    def _list_layers(
        self, graph: tf.Graph, made: Mapping[tf.Operation, str], between: set[tf.Operation]
    ) -> tuple[dict[str, str], tuple[LayerInfo, ...]]:
        """Returns the tensors by layer name, and the layers.

        Args:
            graph: The traced graph.
            made: The names in the SavedModel's own graph.
            between: The operations from the image to the logits.
        """
        order = [operation for operation in graph.get_operations() if operation in between]
        extents = find_graph_extents(
            self._path.name,
            [operation for operation in order if operation not in made],
            {operation: made[operation] for operation in order if operation in made},
            (*self.input_size, 3),
            self._image.dtype.name,
            self._compute_from,
        )
        listed = {
            name: operation.outputs[0]
            for operation, name in made.items()
            if operation in between
            and operation.type not in _NOT_LISTED
            and len(operation.outputs) >= 1
            and operation.outputs[0].dtype.is_floating
            and operation.outputs[0].shape.rank == 4
        }
        tensors = {
            short: f"{name}:0" for short, name in zip(_shortened(list(listed)), listed, strict=True)
        }
        layers = tuple(
            LayerInfo(
                short,
                tensor.op.type,
                tuple(tensor.shape),
                has_positions(tuple(tensor.shape)),
                extents.get(name),
            )
            for short, (name, tensor) in zip(tensors, listed.items(), strict=True)
        )
        return tensors, layers

    def _find_logits(
        self,
        output: tf.Tensor,
        classes: int,
        made: Mapping[tf.Operation, str],
        declared: Outputs | None,
    ) -> tuple[tf.Tensor, Ending]:
        """Finds the input of the last softmax or sigmoid; the output if there is none."""
        tensor = output
        while tensor.op.type in _SAME_VALUES:
            tensor = tensor.op.inputs[0]
        activation = _ENDINGS.get(tensor.op.type)
        if activation is OutputActivation.SOFTMAX and tensor.shape[-1] != classes:
            activation = None
        name = self._path.name
        if activation:
            logits = tensor.op.inputs[0]
            answers, before = self._run_on_probes(made, [output, logits])
            if makes(activation, before, answers, output.dtype.name):
                check_declared(name, activation, declared)
                return logits, Ending(activation)
        (answers,) = self._run_on_probes(made, [output])
        is_linear = not activation and _is_linear(tensor)
        return output, judge(name, answers, is_linear=is_linear, declared=declared)

    def _run_on_probes(
        self, made: Mapping[tf.Operation, str], tensors: Sequence[tf.Tensor]
    ) -> list[NDArray[np.float32]]:
        names = [_name_in(made, tensor) for tensor in tensors]
        batch_size = self._image.shape[0] or 1
        return run_on_probes(
            *(self._path.name, lambda images: self._import(images, names)),
            *(self.input_size, batch_size),
        )

    def _refuse_channels_first(self, operations: set[tf.Operation]) -> None:
        for operation in operations:
            if operation.type.startswith("Conv2D") and b"NCHW" in operation.get_attr("data_format"):
                raise self._error("it is channels_first; only channels_last models can be served")


def _name_in(made: Mapping[tf.Operation, str], tensor: tf.Tensor) -> str:
    """Returns the name of a traced tensor in the SavedModel's own graph."""
    return f"{made[tensor.op]}:{tensor.name.rpartition(':')[2]}"


def _is_linear(tensor: tf.Tensor) -> bool:
    """Returns whether a tensor is a product with weights, without an activation."""
    operation = tensor.op
    if operation.type in _LINEAR:
        return True
    if operation.type not in _LINEAR_COMBINATIONS | _LINEAR_SCALINGS | _SAME_VALUES:
        return False
    computed = [source for source in operation.inputs if source.op.type not in _CONSTANT]
    if operation.type in _LINEAR_SCALINGS and len(computed) > 1:
        return False
    return bool(computed) and all(map(_is_linear, computed))


def _after(operation: tf.Operation) -> set[tf.Operation]:
    """Returns the operations that depend on an operation, itself included."""
    after: set[tf.Operation] = set()
    waiting = [operation]
    while waiting:
        if (current := waiting.pop()) not in after:
            after.add(current)
            waiting.extend(user for tensor in current.outputs for user in tensor.consumers())
    return after


def _before(tensor: tf.Tensor) -> set[tf.Operation]:
    """Returns the operations on which a tensor depends, its own included."""
    before: set[tf.Operation] = set()
    waiting = [tensor.op]
    while waiting:
        if (operation := waiting.pop()) not in before:
            before.add(operation)
            waiting.extend(source.op for source in operation.inputs)
    return before


def _shortened(names: Sequence[str]) -> list[str]:
    """Removes the calls from paths, and their common prefix."""
    paths = [[part for part in name.split("/") if part not in _CALLS] for name in names]
    levels = zip(*(path[:-1] for path in paths), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    short = ["/".join(path[common:]) for path in paths]
    return short if len(set(short)) == len(short) else list(names)
