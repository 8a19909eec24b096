"""StableHLO modules are edited without a change of their answers, and run at any batch size."""

from collections.abc import Sequence
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from gradcam_server.domain.options import Precision
from gradcam_server.errors import StartupError
from gradcam_server.graphs.compilers import pjrt_runtime
from gradcam_server.graphs.compilers.pjrt_devices import parse_memory_mib, set_up_devices
from gradcam_server.graphs.compilers.pjrt_modules import (
    ModuleError,
    from_text,
    read_signature,
    with_fast_products,
)
from gradcam_server.graphs.compilers.pjrt_runtime import (
    describe_precision,
    in_batches_of,
    load_module,
    put_weights,
)
from gradcam_server.graphs.executable import Array

TEXT = """
module @secret attributes {mhlo.is_dynamic = false} {
  func.func @main(
    %x: tensor<2x3xf32>, %c: tensor<2x1xi32>, %a: tensor<2x1xi32>,
    %narrow: tensor<3x3xf32>, %both: tensor<3x3xf32>
  ) -> (tensor<2x3xf32>, tensor<2x3xbf16>) {
    %half = stablehlo.convert %x : (tensor<2x3xf32>) -> tensor<2x3xbf16>
    %w = stablehlo.convert %narrow : (tensor<3x3xf32>) -> tensor<3x3xbf16>
    %again = stablehlo.convert %narrow : (tensor<3x3xf32>) -> tensor<3x3xbf16>
    %v = stablehlo.convert %both : (tensor<3x3xf32>) -> tensor<3x3xbf16>
    %sum = stablehlo.add %w, %again : tensor<3x3xbf16>
    %all = stablehlo.add %sum, %v : tensor<3x3xbf16>
    %rough = stablehlo.dot_general %half, %all, contracting_dims = [1] x [0],
      precision = [DEFAULT, DEFAULT] : (tensor<2x3xbf16>, tensor<3x3xbf16>) -> tensor<2x3xbf16>
    %exact = stablehlo.dot_general %x, %both, contracting_dims = [1] x [0],
      precision = [DEFAULT, DEFAULT] : (tensor<2x3xf32>, tensor<3x3xf32>) -> tensor<2x3xf32>
    return %exact, %rough : tensor<2x3xf32>, tensor<2x3xbf16>
  } loc("/home/someone/model.py":1:1)
}
"""


def to_text(artifact: bytes) -> str:
    with mlir.make_ir_context() as context:
        return str(stablehlo.deserialize_portable_artifact(context, artifact))


def test_weights_are_taken_as_they_are_used() -> None:
    """A weight that is only used in bfloat16 is taken so; one that is not stays float32."""
    artifact = from_text(TEXT)
    weights = read_signature(artifact).weights
    assert [str(one) for one in weights] == ["bfloat16 [3, 3]", "float32 [3, 3]"]
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 3)).astype(np.float32)
    narrow, both = random.normal(size=(2, 3, 3)).astype(np.float32)
    (device,) = set_up_devices(["CPU:0"])
    values = {"narrow": narrow.astype(weights[0].dtype), "both": both}
    run = load_module(artifact, [*put_weights(values, device).values()], device)
    exact, rough = run(x, *np.zeros((2, 2, 1), np.int32))
    np.testing.assert_allclose(exact, x @ both, rtol=1e-5)
    np.testing.assert_allclose(rough.astype(float), x @ (2 * narrow + both), rtol=0.1, atol=0.1)


def module(batch_size: int) -> bytes:
    """Adds the class to the sum of an image's pixels, and multiplies it by a weight."""
    images = f"tensor<{batch_size}x8x8x3xui8>"
    floats, targets = images.replace("ui8", "f32"), f"tensor<{batch_size}x1xi32>"
    scores = targets.replace("i32", "f32")
    return from_text(f"""
        func.func @main(
          %x: {images}, %c: {targets}, %a: {targets}, %w: {scores}
        ) -> {scores} {{
          %f = stablehlo.convert %x : ({images}) -> {floats}
          %zero = stablehlo.constant dense<0.0> : tensor<f32>
          %sum = stablehlo.reduce(%f init: %zero)
            applies stablehlo.add across dimensions = [1, 2, 3]
            : ({floats}, tensor<f32>) -> tensor<{batch_size}xf32>
          %r = stablehlo.reshape %sum : (tensor<{batch_size}xf32>) -> {scores}
          %d = stablehlo.convert %c : ({targets}) -> {scores}
          %t = stablehlo.add %r, %d : {scores}
          %o = stablehlo.multiply %t, %w : {scores}
          return %o : {scores}
        }}
    """)


def batch(size: int) -> list[Array]:
    images = np.random.default_rng(size).integers(0, 256, (size, 8, 8, 3), np.uint8)
    return [images, np.arange(size, dtype=np.int32)[:, None], np.zeros((size, 1), np.int32)]


def expected(inputs: Sequence[Array]) -> Array:
    images, classes, _ = inputs
    return 2.0 * (images.sum((1, 2, 3), dtype=np.float32)[:, None] + classes)


@pytest.mark.parametrize("size", [1, 6, 8])
def test_a_gpu_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Several runs are begun before the first is read; large batches are uploaded in parts."""
    monkeypatch.setattr(pjrt_runtime, "_SYNCHRONOUS", set())
    monkeypatch.setattr(pjrt_runtime, "_MAX_PART_BYTES", 400)
    (device,) = set_up_devices(["CPU:0"])
    (weight,) = put_weights({"w": np.full((size, 1), 2, np.float32)}, device).values()
    run = load_module(module(size), [weight], device)
    batches = [batch(size) for _ in range(3)]
    for inputs, (output,) in [(inputs, run(*inputs)) for inputs in batches]:
        assert not isinstance(output, np.ndarray)
        np.testing.assert_allclose(np.asarray(output), expected(inputs), rtol=1e-6)


def test_what_fails_on_a_gpu_fails_its_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes when the outputs are read; the next batch is computed."""
    monkeypatch.setattr(pjrt_runtime, "_SYNCHRONOUS", set())
    (device,) = set_up_devices(["CPU:0"])
    (weight,) = put_weights({"w": np.full((2, 1), 2, np.float32)}, device).values()
    run = load_module(module(2), [weight], device)
    (wrong,) = run(*batch(3))
    (right,) = run(*batch(2))
    with pytest.raises(Exception, match="shape"):
        np.asarray(wrong)
    np.testing.assert_allclose(np.asarray(right), expected(batch(2)), rtol=1e-6)


def test_a_module_names_nothing_of_its_machine() -> None:
    """Neither files nor the function that was traced."""
    artifact = from_text(TEXT)
    assert b"someone" not in artifact
    assert b"secret" not in artifact


def test_float32_is_true_float32_unless_asked_otherwise() -> None:
    """Only products of float32 numbers are marked; other products stay as they are."""
    text = to_text(from_text(TEXT))
    assert "stablehlo.dot_general" in text
    assert [line for line in text.splitlines() if "HIGHEST" in line] == [
        line
        for line in text.splitlines()
        if line.endswith("(tensor<2x3xf32>, tensor<3x3xf32>) -> tensor<2x3xf32>")
    ]
    assert "HIGHEST" not in to_text(with_fast_products(from_text(TEXT)))


@pytest.mark.parametrize("text", ["module {", "module {}", "func.func @f() { return }"])
def test_what_is_no_graph_is_refused(text: str) -> None:
    """The error says that it is no module, or that it has no function main."""
    with pytest.raises(ModuleError, match="not a StableHLO module|no function main"):
        from_text(text)


def test_sizes_that_are_open_are_refused() -> None:
    """Each module has one batch size."""
    text = "func.func @main(%x: tensor<?xf32>) -> tensor<?xf32> { return %x : tensor<?xf32> }"
    with mlir.make_ir_context(), ir.Location.unknown():
        version = stablehlo.get_minimum_version()
        artifact = stablehlo.serialize_portable_artifact(ir.Module.parse(text), version)
    with pytest.raises(ModuleError, match=r"tensor<\?xf32>, which is not a tensor of a fixed"):
        read_signature(artifact)


@pytest.mark.parametrize(
    ("size", "sizes"), [(1, [2]), (2, [2]), (3, [4]), (5, [4, 4]), (9, [4, 4, 4])]
)
def test_batches_of_other_sizes_are_made_of_its_own(size: int, sizes: list[int]) -> None:
    """A batch is padded to the next size, or else divided; the answers are those of its rows."""
    ran = []

    def execute(*arrays: Array) -> Sequence[Array]:
        ran.append(len(arrays[0]))
        return [arrays[0] * 2, arrays[1] + arrays[2]]

    run = in_batches_of(dict.fromkeys((2, 4), execute), size)
    rows = np.arange(3 * size).reshape(3, size, 1)
    doubled, added = run(*rows)
    assert ran == sizes
    np.testing.assert_array_equal(doubled, rows[0] * 2)
    np.testing.assert_array_equal(added, rows[1] + rows[2])


def test_the_precision_is_said() -> None:
    """TF32 only where a GPU rounds to it and JAX is told that it may."""
    cpu, gpu = SimpleNamespace(platform="cpu"), SimpleNamespace(platform="gpu")
    assert describe_precision(Precision.FLOAT32, [cpu, gpu]) == "float32 (true float32)"
    assert describe_precision(Precision.BFLOAT16, [gpu]) == "bfloat16"
    with jax.default_matmul_precision("tensorfloat32"):
        assert describe_precision(Precision.FLOAT32, [gpu]) == "float32 (products in TF32)"
        assert describe_precision(Precision.FLOAT32, [cpu]) == "float32 (true float32)"
    with jax.default_matmul_precision("highest"):
        assert describe_precision(Precision.FLOAT32, [gpu]) == "float32 (true float32)"


def test_the_memory_of_gpus_is_read() -> None:
    """The smallest GPU counts; other output is refused."""
    assert parse_memory_mib("81559\n40960\n") == 40960
    for text in ("", "No devices were found\n"):
        with pytest.raises(StartupError, match="nvidia-smi wrote"):
            parse_memory_mib(text)
