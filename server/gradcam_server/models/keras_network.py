"""Keras models, nested to any depth, as one flat list of layer calls.

Models from files are rarely one graph: transfer learning wraps a trained model in another.
Keras can return the output of a nested layer only from the nested model's own graph, which the
outer model does not use. So the nesting is undone once, at the start: all layers are called on
symbols of the served input size, nested models replaced by their layers, and the calls are
recorded. ``compute`` repeats the calls on tensors, and can return the outputs of any.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.models.functional import Functional
from numpy.typing import NDArray

from gradcam_server.domain.layers import LayerInfo, has_positions
from gradcam_server.domain.options import Outputs, Precision
from gradcam_server.errors import StartupError, quote
from gradcam_server.models.batch_norm import Fold, can_fold
from gradcam_server.models.ending import (
    Ending,
    check_declared,
    judge,
    makes,
    run_on_probes,
    usual_activation,
)
from gradcam_server.models.keras_calls import (
    LAYERS_WITH_ACTIVATION,
    Call,
    is_linear,
    keeps_all_values,
    last_activation,
)
from gradcam_server.models.keras_extents import find_keras_extents
from gradcam_server.models.network import DEFAULT_INPUT_SIZE, LinearHead
from gradcam_server.models.pixel_scaling import do_layers_scale
from gradcam_server.models.precision import computing_in

_NO_GRAPH = (
    "it is a subclassed model, whose layers cannot be seen from outside; "
    "functional and Sequential models can be served, or a SavedModel of it (model.export)"
)


class KerasNetwork:
    """A functional or Sequential model, nested to any depth.

    Nested layers have paths, such as "resnet50/conv5_block3_out". A layer that is called
    several times has one entry for each call: "conv", "conv#2", "conv#3". All layers run in
    inference mode, also those that were called with ``training=True``.

    A softmax or sigmoid at the end is removed, so that the network gives logits. A model without
    one is run on a few images to tell whether its outputs are logits (see ``judge``). Batch
    normalisations are folded into the layers before them (see ``Fold``), which changes the model.

    Args:
        model: The model, which is changed: it must have no other user.
        input_size: (height, width) in pixels, if the model leaves them open; 224 x 224 by default.
        outputs: The kind of the model's outputs, where they do not tell.
        name: The model's name in the log; its own name by default.

    Raises:
        StartupError: The model cannot be explained; the text says why.
    """

    def __init__(
        self,
        model: keras.Model,
        input_size: tuple[int, int] | None = None,
        outputs: Outputs | None = None,
        name: str | None = None,
    ) -> None:
        if not _has_graph(model):
            raise StartupError(f"{model.name} cannot be explained: {_NO_GRAPH}")
        self._calls: list[Call] = []
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
        self._logits, self._ending = self._find_logits(name or model.name, output, outputs)
        self.output_activation = self._ending.activation
        self.class_count: int = self._logits.shape[-1]
        self._calls = list(_needed(self._calls, self._logits))
        self._folds = dict(_fold(self._calls, self._logits))
        self._outputs = {call.name: call.outputs[0] for call in self._calls}
        self.layers: tuple[LayerInfo, ...] = self._list_layers(model)
        self.head = self._find_head()
        self.scales_pixels = do_layers_scale(self._calls, self._input)
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
        done: set[str] = set()
        with computing_in(precision, [call.operation for call in self._calls]):
            for call in self._calls:
                if call.name in done:
                    continue
                reverses = is_reversed and call is self._first_convolution
                with _reversed_kernel(call.operation) if reverses else nullcontext():
                    outputs = call.run(values)
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
        return seen, self._ending.to_logits(tf.cast(values[id(self._logits)], tf.float32))

    def _flatten(
        self, model: keras.Model, inputs: Any, path: str, position: tuple[int, ...]
    ) -> Any:
        """Calls the layers of a model on symbols, and records the calls."""
        if isinstance(model, keras.Sequential):
            (output,) = self._cast(model, inputs)
            for index, layer in enumerate(model.layers):
                output = self._call(layer, path, (*position, index), output)
            return output
        indices = {id(operation): index for index, operation in enumerate(model.operations)}
        # Keras has no public function that walks through the graph.
        return model._run_through_graph(
            self._cast(model, inputs),
            operation_fn=lambda operation: partial(
                self._call, operation, path, (*position, indices[id(operation)])
            ),
        )

    def _cast(self, model: keras.Model, inputs: Any) -> list[keras.KerasTensor]:
        """Casts inputs to the types that the model's own input layers declare."""
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
        self._calls.append(Call(name, (*position, number), operation, (args, kwargs), symbols))
        return outputs

    def _check(self, model: keras.Model, output: Any) -> None:
        outputs = keras.tree.flatten(output)
        if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].shape[1] is None:
            shapes = ", ".join(str(symbol.shape) for symbol in outputs)
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

    def _find_logits(
        self, name: str, output: Any, declared: Outputs | None
    ) -> tuple[keras.KerasTensor, Ending]:
        """Finds the input of the last softmax or sigmoid; the output if there is none."""
        (output,) = keras.tree.flatten(output)
        makers = {id(made): call for call in self._calls for made in call.outputs}
        symbol = output
        behind: list[Call] = []
        while (last := makers.get(id(symbol))) and keeps_all_values(last):
            behind.insert(0, last)
            (symbol,) = last.inputs
        ends_linear = is_linear(last, makers)
        if ends_linear and declared is Outputs.LOGITS:  # Nothing to find out.
            return output, Ending(usual_activation(output.shape[1]))
        activation = last_activation(last) if last else None
        if not last or not activation:
            (answers,) = self._run_on_probes(name, [output])
            return output, judge(name, answers, is_linear=ends_linear, declared=declared)
        logits = self._repeat(behind, self._without_activation(last))
        answers, before = self._run_on_probes(name, [output, logits])
        if not makes(activation, before, answers, output.dtype):
            return output, judge(name, answers, is_linear=False, declared=declared)
        check_declared(name, activation, declared)
        return logits, Ending(activation)

    def _without_activation(self, call: Call) -> keras.KerasTensor:
        """Returns the values to which a call applies its activation."""
        if not isinstance(call.operation, LAYERS_WITH_ACTIVATION):
            return call.inputs[0]
        # A second layer with the same weights, so that the first stays as it is. Not copy.copy:
        # Keras makes that save and load the layer.
        layer = object.__new__(type(call.operation))
        vars(layer).update(vars(call.operation))
        layer.activation = keras.activations.linear
        return self._repeat([replace(call, operation=layer)], call.inputs[0])

    def _repeat(self, calls: Sequence[Call], symbol: keras.KerasTensor) -> keras.KerasTensor:
        """Repeats calls of one tensor, on another."""
        for call in calls:
            args, kwargs = call.arguments_of({id(call.inputs[0]): symbol})
            symbol = call.operation(*args, **kwargs)
            self._calls.append(replace(call, arguments=(args, kwargs), outputs=(symbol,)))
        return symbol

    def _run_on_probes(
        self, model: str, symbols: Sequence[keras.KerasTensor]
    ) -> list[NDArray[np.float32]]:
        def run(images: tf.Tensor) -> list[tf.Tensor]:
            values = {id(self._input): tf.cast(images, self._input.dtype)}
            for call in self._calls:
                values.update(zip(map(id, call.outputs), call.run(values), strict=True))
            return [values[id(symbol)] for symbol in symbols]

        return run_on_probes(model, run, self.input_size)

    def _find_head(self) -> LinearHead | None:
        last = self._calls[-1]
        layer = last.operation
        if type(layer) is not keras.layers.Dense or last.outputs[0] is not self._logits:
            return None
        if layer.activation is not keras.activations.linear or layer.quantization_mode is not None:
            return None
        if self._ending.holds_probabilities:
            return None
        (given,) = last.inputs
        name = next((name for name, made in self._outputs.items() if made is given), None)
        if not name or len(given.shape) != 2 or not isinstance(layer.kernel, keras.Variable):
            return None
        return LinearHead(name, layer.kernel)

    def _list_layers(self, model: keras.Model) -> tuple[LayerInfo, ...]:
        name = model.inputs[0]._keras_history.operation.name
        first = LayerInfo(name, "InputLayer", tuple(self._input.shape), False)
        extents = find_keras_extents(model.name, self._calls, self._input)
        others = (
            LayerInfo(
                call.name,
                type(call.operation).__name__,
                tuple(call.outputs[0].shape),
                has_positions(call.outputs[0].shape) and "float" in call.outputs[0].dtype,
                extents.get(call.name),
            )
            for call in sorted(self._calls, key=lambda call: call.position)
            if len(call.outputs) == 1 and call.position[0] >= 0
        )
        return (first, *others)


def _has_graph(model: keras.Model) -> bool:
    """Returns whether a model is only a graph of layers."""
    return any(
        isinstance(model, kind) and type(model).call is kind.call
        for kind in (keras.Sequential, Functional)
    )


def _input_of(
    model: keras.Model, input_size: tuple[int, int] | None
) -> tuple[tuple[int | None, int, int, int], str]:
    """Returns the shape of the one input, with open sizes filled in, and its type."""
    if isinstance(model, keras.Sequential) and not model.built:
        model.build((None, *(input_size or DEFAULT_INPUT_SIZE), 3))
    if len(model.inputs) != 1:
        raise StartupError(
            f"{model.name} cannot be explained: it has {len(model.inputs)} inputs; "
            "an image must be the only input"
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


def _needed(calls: Sequence[Call], symbol: keras.KerasTensor) -> Iterator[Call]:
    """Yields the calls on which a symbol depends, in order."""
    needed = {id(symbol)}
    kept = []
    for call in reversed(calls):
        if any(id(output) in needed for output in call.outputs):
            needed.update(map(id, call.inputs))
            kept.append(call)
    yield from reversed(kept)


def _fold(
    calls: Sequence[Call], logits: keras.KerasTensor
) -> Iterator[tuple[str, tuple[Call, Fold]]]:
    """Folds normalisations; yields names of linear layers, each with its normalisation."""
    users: dict[int, list[Call]] = defaultdict(list)
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


def _find_first_convolution(calls: Sequence[Call], image: keras.KerasTensor) -> Call | None:
    """Returns the first call on the image, but for padding, if it is a convolution."""
    symbol = image
    while True:
        match [call for call in calls if any(given is symbol for given in call.inputs)]:
            case [call] if type(call.operation) is keras.layers.ZeroPadding2D:
                (symbol,) = call.outputs
            case [call] if type(call.operation) is keras.layers.Conv2D:
                kernel = call.operation.kernel
                is_whole = isinstance(kernel, keras.Variable) and kernel.shape[2] == image.shape[3]
                return call if is_whole else None
            case _:
                return None


@contextmanager
def _reversed_kernel(layer: keras.layers.Conv2D) -> Iterator[None]:
    """A context in which the input channels of a layer's kernel are reversed."""
    with keras.StatelessScope([(layer.kernel, tf.reverse(layer.kernel, axis=[2]))]):
        yield
