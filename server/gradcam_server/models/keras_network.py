"""Keras models, nested to any depth, as one flat list of layer calls.

A model that people bring is rarely one graph: transfer learning wraps a trained model in
another. Keras can return the output of a nested layer only from the nested model's own graph,
which the outer one does not use. So the nesting is undone once, at the start: all layers are
called on symbols of the served input size, nested models replaced by their layers, and the calls
are written down. ``compute`` repeats them on tensors, and can return any of them.
"""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras.src.models.functional import Functional

from gradcam_server.config import Precision
from gradcam_server.errors import StartupError, quote
from gradcam_server.layers import LayerInfo, has_positions
from gradcam_server.models.batch_norm import Fold, can_fold
from gradcam_server.models.network import LinearHead, OutputActivation
from gradcam_server.models.precision import computing_in

logger = logging.getLogger(__name__)

DEFAULT_INPUT_SIZE = (224, 224)

_NO_GRAPH = (
    "it is a subclassed model, whose layers cannot be seen from outside; "
    "functional and Sequential models can be served, or a SavedModel of it (model.export)"
)


@dataclass(frozen=True)
class _Call:
    """A call of a layer, or of another Keras operation, on symbols.

    Attributes:
        name: Path of the layer; "#2" and so on for its second and further calls.
        position: Sorts the calls as ``model.layers`` does.
        operation: The layer.
        arguments: (args, kwargs) with symbols for tensors.
        outputs: Symbols.
    """

    name: str
    position: tuple[int, ...]
    operation: Any
    arguments: Any
    outputs: tuple[keras.KerasTensor, ...]

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        return [leaf for leaf in keras.tree.flatten(self.arguments) if _is_symbol(leaf)]


class KerasNetwork:
    """A functional or Sequential model, nested to any depth.

    Nested layers have paths, such as "resnet50/conv5_block3_out". A layer that is called
    several times has one entry for each call: "conv", "conv#2", "conv#3". All run in inference
    mode, whatever was said when the model was built.

    A softmax or sigmoid at the end is taken off, so that the model gives logits. If it is the
    activation of the last dense or convolutional layer, **that layer is changed**: the model
    given here gives logits from then on. Batch normalisations are folded into the layers before
    them (see ``Fold``), which changes these.

    Args:
        model: The model; for its exclusive use.
        input_size: (height, width), if the model leaves it open; 224 x 224 by default.

    Raises:
        StartupError: The model cannot be explained; the text says why.
    """

    def __init__(self, model: keras.Model, input_size: tuple[int, int] | None = None) -> None:
        if not _has_graph(model):
            raise StartupError(f"{model.name} cannot be explained: {_NO_GRAPH}")
        self._calls: list[_Call] = []
        self._used: Counter[str] = Counter()
        try:
            shape, dtype = _input_of(model, input_size)
            self._input = keras.Input(shape[1:], dtype=dtype)
            output = self._flatten(model, self._input, "", ())
        except StartupError:
            raise
        except Exception as error:
            size = "x".join(map(str, input_size or DEFAULT_INPUT_SIZE))
            raise StartupError(
                f"{model.name} cannot be run layer by layer, with an input of {size} if it "
                f"leaves that open (--input-size): {quote(error)}"
            ) from error
        self.input_size: tuple[int, int] = shape[1:3]
        self._check(model, output)
        self._logits, self.output_activation = self._without_activation(model, output)
        self.class_count: int = self._logits.shape[-1]
        self._calls = list(_needed(self._calls, self._logits))
        self._folds = dict(_fold(self._calls, self._logits))
        self._outputs = {call.name: call.outputs[0] for call in self._calls}
        self.layers: tuple[LayerInfo, ...] = self._list_layers(model)
        self.head = self._find_head()
        self._first_convolution = _find_first_convolution(self._calls, self._input)
        self.can_reverse = self._first_convolution is not None

    def compute(
        self,
        inputs: tf.Tensor,
        layers: Sequence[str],
        precision: Precision = Precision.FLOAT32,
        *,
        is_reversed: bool = False,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Runs the network in inference mode; see ``Network.compute``."""
        values = {id(self._input): tf.cast(inputs, self._input.dtype)}

        def value(leaf: Any) -> Any:
            return values[id(leaf)] if _is_symbol(leaf) else leaf

        done: set[str] = set()
        with computing_in(precision, [call.operation for call in self._calls]):
            for call in self._calls:
                if call.name in done:
                    continue
                args, kwargs = keras.tree.map_structure(value, call.arguments)
                is_turned = is_reversed and call is self._first_convolution
                with _turned(call.operation) if is_turned else nullcontext():
                    outputs = keras.tree.flatten(call.operation(*args, **kwargs))
                if found := self._folds.get(call.name):
                    normalization, fold = found
                    done.add(normalization.name)
                    (linear,) = outputs
                    if call.name in layers:
                        linear, normalized = fold.shown(linear)
                        outputs = [linear]
                    else:
                        normalized = fold.normalized(linear)
                    values[id(normalization.outputs[0])] = normalized
                for symbol, output in zip(call.outputs, outputs, strict=True):
                    values[id(symbol)] = output
        seen = [values[id(self._outputs[name])] for name in layers]
        return seen, tf.cast(values[id(self._logits)], tf.float32)

    def _flatten(
        self, model: keras.Model, inputs: Any, path: str, position: tuple[int, ...]
    ) -> Any:
        """Calls the layers of a model on symbols, and writes the calls down."""
        if isinstance(model, keras.Sequential):
            (output,) = self._cast(model, inputs)
            for index, layer in enumerate(model.layers):
                output = self._call(layer, path, (*position, index), output)
            return output
        indices = {id(operation): index for index, operation in enumerate(model.operations)}
        # Keras' own walk through the graph; there is no public one.
        return model._run_through_graph(
            self._cast(model, inputs),
            operation_fn=lambda operation: partial(
                self._call, operation, path, (*position, indices[id(operation)])
            ),
        )

    def _cast(self, model: keras.Model, inputs: Any) -> list[keras.KerasTensor]:
        """Gives inputs the types that the model's own input layers declare."""
        return [
            given
            if given.dtype == wanted.dtype
            else self._call(
                keras.layers.Identity(dtype=wanted.dtype, name="cast_of_input"), "", (-1,), given
            )
            for given, wanted in zip(keras.tree.flatten(inputs), model.inputs, strict=True)
        ]

    def _call(
        self, operation: Any, path: str, position: tuple[int, ...], *args: Any, **kwargs: Any
    ) -> Any:
        name = path + operation.name
        self._used[name] += 1
        if (number := self._used[name]) > 1:
            name = f"{name}#{number}"
        if isinstance(operation, keras.Model) and _has_graph(operation):
            inputs = args or kwargs["inputs"]
            return self._flatten(operation, inputs, f"{name}/", (*position, number))
        if isinstance(operation, keras.Layer):
            kwargs["training"] = False
        outputs = operation(*args, **kwargs)
        symbols = tuple(keras.tree.flatten(outputs))
        self._calls.append(_Call(name, (*position, number), operation, (args, kwargs), symbols))
        return outputs

    def _check(self, model: keras.Model, output: Any) -> None:
        outputs = keras.tree.flatten(output)
        if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].shape[1] is None:
            shapes = ", ".join(str(one.shape) for one in outputs)
            raise StartupError(
                f"{model.name} cannot be explained: its output must be (batch, classes), "
                f"and is {shapes}"
            )
        for call in self._calls:
            if getattr(call.operation, "data_format", None) == "channels_first":
                raise StartupError(
                    f"{model.name} cannot be explained: its layer {call.name} is channels_first; "
                    "only channels_last models can be served"
                )

    def _without_activation(
        self, model: keras.Model, output: Any
    ) -> tuple[keras.KerasTensor, OutputActivation]:
        """Finds the logits: what the last softmax or sigmoid is applied to."""
        (symbol,) = keras.tree.flatten(output)
        makers = {id(made): call for call in self._calls for made in call.outputs}
        behind: list[_Call] = []
        while (call := makers.get(id(symbol))) and _only_rearranges(call):
            behind.insert(0, call)
            (symbol,) = call.inputs
        ending = _ending(call) if call else None
        if not call or not ending:
            (output,) = keras.tree.flatten(output)
            # One linear output can only be the log-odds of a yes.
            ending = OutputActivation.SIGMOID if output.shape[1] == 1 else OutputActivation.SOFTMAX
            logger.info(
                "%s ends in neither softmax nor sigmoid: its outputs are taken for the logits of "
                "a %s",
                *(model.name, ending),
            )
            return output, ending
        if isinstance(call.operation, _LAYERS_WITH_ACTIVATION):
            if sum(other.operation is call.operation for other in self._calls) > 1:
                raise StartupError(
                    f"{model.name} cannot be explained: its last layer {call.name} is used more "
                    "than once, so its activation cannot be taken off"
                )
            call.operation.activation = keras.activations.linear
        else:
            (symbol,) = call.inputs
        for call in behind:
            symbol = self._call(call.operation, "", call.position, symbol)
            self._calls[-1] = replace(self._calls[-1], name=call.name)
        return symbol, ending

    def _find_head(self) -> LinearHead | None:
        last = self._calls[-1]
        layer = last.operation
        if type(layer) is not keras.layers.Dense or last.outputs[0] is not self._logits:
            return None
        if layer.activation is not keras.activations.linear or layer.quantization_mode is not None:
            return None
        (given,) = last.inputs
        name = next((name for name, made in self._outputs.items() if made is given), None)
        if not name or len(given.shape) != 2 or not isinstance(layer.kernel, keras.Variable):
            return None
        return LinearHead(name, layer.kernel)

    def _list_layers(self, model: keras.Model) -> tuple[LayerInfo, ...]:
        name = model.inputs[0]._keras_history.operation.name
        first = LayerInfo(name, "InputLayer", tuple(self._input.shape), False)
        others = (
            LayerInfo(
                call.name,
                type(call.operation).__name__,
                tuple(call.outputs[0].shape),
                has_positions(call.outputs[0].shape) and "float" in call.outputs[0].dtype,
            )
            for call in sorted(self._calls, key=lambda call: call.position)
            if len(call.outputs) == 1 and call.position[0] >= 0
        )
        return (first, *others)


def _has_graph(model: keras.Model) -> bool:
    """Returns whether a model is nothing but the graph of its layers."""
    return any(
        isinstance(model, kind) and type(model).call is kind.call
        for kind in (keras.Sequential, Functional)
    )


def _is_symbol(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _input_of(
    model: keras.Model, input_size: tuple[int, int] | None
) -> tuple[tuple[int | None, int, int, int], str]:
    """Returns the shape of the one input, with its open sizes filled in, and its type."""
    if isinstance(model, keras.Sequential) and not model.built:
        model.build((None, *(input_size or DEFAULT_INPUT_SIZE), 3))
    if len(model.inputs) != 1:
        raise StartupError(
            f"{model.name} cannot be explained: it has {len(model.inputs)} inputs; "
            "one image must be the only one"
        )
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4 or shape[3] not in {3, None}:
        raise StartupError(
            f"{model.name} cannot be explained: its input must be (batch, height, width, 3), "
            f"and is {shape}"
        )
    pairs = zip(shape[1:3], input_size or DEFAULT_INPUT_SIZE, strict=True)
    height, width = (size if fixed is None else fixed for fixed, size in pairs)
    if input_size not in {None, (height, width)}:
        raise StartupError(
            f"{model.name} takes images of {shape[1]}x{shape[2]}, which --input-size cannot change"
        )
    return (None, height, width, 3), model.inputs[0].dtype


def _needed(calls: Sequence[_Call], symbol: keras.KerasTensor) -> Iterator[_Call]:
    """Yields the calls on which a symbol depends, in their order."""
    needed = {id(symbol)}
    kept = []
    for call in reversed(calls):
        if any(id(output) in needed for output in call.outputs):
            needed.update(id(one) for one in call.inputs)
            kept.append(call)
    yield from reversed(kept)


def _fold(
    calls: Sequence[_Call], logits: keras.KerasTensor
) -> Iterator[tuple[str, tuple[_Call, Fold]]]:
    """Folds normalisations; yields names of linear layers, each with its normalisation."""
    users: dict[int, list[_Call]] = defaultdict(list)
    for call in calls:
        for symbol in call.inputs:
            users[id(symbol)].append(call)
    uses = Counter(id(call.operation) for call in calls)
    for linear in calls:
        if len(linear.outputs) != 1 or linear.outputs[0] is logits:
            continue
        match users[id(linear.outputs[0])]:
            case [after] if uses[id(linear.operation)] == uses[id(after.operation)] == 1:
                if can_fold(linear.operation, after.operation):
                    yield linear.name, (after, Fold(linear.operation, after.operation))


def _find_first_convolution(calls: Sequence[_Call], image: keras.KerasTensor) -> _Call | None:
    """Returns the call that sees the image first, but for padding, if it is a convolution."""
    symbol = image
    while True:
        match [call for call in calls if any(one is symbol for one in call.inputs)]:
            case [call] if type(call.operation) is keras.layers.ZeroPadding2D:
                (symbol,) = call.outputs
            case [call] if type(call.operation) is keras.layers.Conv2D:
                kernel = call.operation.kernel
                is_whole = isinstance(kernel, keras.Variable) and kernel.shape[2] == image.shape[3]
                return call if is_whole else None
            case _:
                return None


@contextmanager
def _turned(layer: keras.layers.Conv2D) -> Iterator[None]:
    """Has a layer see its kernel's input channels in the other order."""
    with keras.StatelessScope([(layer.kernel, tf.reverse(layer.kernel, axis=[2]))]):
        yield


_REARRANGING_LAYERS = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
)
_REARRANGING_OPERATIONS = {"Cast", "Reshape", "Squeeze"}
_LAYERS_WITH_ACTIVATION = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv2D,
)
_ENDINGS = {
    "softmax": OutputActivation.SOFTMAX,
    "log_softmax": OutputActivation.SOFTMAX,
    "sigmoid": OutputActivation.SIGMOID,
    "log_sigmoid": OutputActivation.SIGMOID,
}


def _only_rearranges(call: _Call) -> bool:
    """Returns whether a call keeps the values of its one input."""
    operation = call.operation
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return False
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.linear
    if isinstance(operation, keras.Layer):
        return isinstance(operation, _REARRANGING_LAYERS)
    return type(operation).__name__ in _REARRANGING_OPERATIONS


def _ending(call: _Call) -> OutputActivation | None:
    """Returns what a call applies last, if that turns logits into probabilities."""
    operation = call.operation
    if isinstance(operation, keras.layers.Softmax):
        name, axis = "softmax", operation.axis
    elif isinstance(operation, (keras.layers.Activation, *_LAYERS_WITH_ACTIVATION)):
        name, axis = getattr(operation.activation, "__name__", ""), -1
    elif not isinstance(operation, keras.Layer):
        # The operation of keras.ops.log_softmax is called LogSoftmax.
        name = re.sub("(?<=[a-z])(?=[A-Z])", "_", type(operation).__name__).lower()
        axis = getattr(operation, "axis", -1)
    else:
        return None
    ending = _ENDINGS.get(name)
    shape = call.outputs[0].shape
    if ending is OutputActivation.SOFTMAX and (
        axis not in {-1, len(shape) - 1} or any(size != 1 for size in shape[1:-1])
    ):
        return None  # Not over the classes.
    return ending
