"""The table of compilers. A compiler is a module that exports ``prepare``, and a row here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.errors import CompilerError
from gradcam_server.graphs.executable import Executables

if TYPE_CHECKING:
    from gradcam_server.graphs.explanation import ExplanationGraph

Prepared = Callable[[int], Executables]
"""Compiles for a batch size. All sizes share one copy of the weights.

It may also be ``streams.Divisible``: then its executables take batches of any size.
"""

Prepare = Callable[["ExplanationGraph", Precision], Prepared]
"""Converts or traces a graph. Both raise CompilerError and DisconnectedLayerError."""

_FLOATS = (Precision.FLOAT32, Precision.BFLOAT16, Precision.FLOAT16)


@dataclass(frozen=True)
class CompilerRow:
    """The properties of a compiler, known without importing it.

    Attributes:
        module: Exports ``prepare``, a ``Prepare``.
        auto_on: The types of devices ("CPU", "GPU") on which ``--compiler auto`` tries it.
        precisions: The precisions that it can compute; INT8 for graphs quantised by an export.
        extra: The extra of gradcam-server that installs it.
        packages: The distributions that it uses; it is timed again when a version changes.
        depths: How many batches may be in flight at a time on a device of a type, 1 if the type is
            not named. More than 1 if executables return before the device has computed
            (``graphs.executable.Executable``).
        is_verified: Whether its answers are compared with the reference's before it is used.
        options: Keyword arguments of ``prepare``.
    """

    module: str
    auto_on: tuple[str, ...]
    precisions: tuple[Precision, ...]
    extra: str
    packages: tuple[str, ...]
    depths: Mapping[str, int] = field(default_factory=dict)
    is_verified: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def depth_on(self, device: str) -> int:
        """Returns how many batches may be in flight on a device, such as "GPU:0"."""
        return self.depths.get(device.partition(":")[0], 1)


_TENSORFLOW = CompilerRow(
    "gradcam_server.graphs.compilers.tensorflow",
    auto_on=("CPU",),
    precisions=_FLOATS,
    extra="cpu",
    packages=("tensorflow", "tensorflow-cpu", "keras"),
    is_verified=False,
)

COMPILERS = {
    Compiler.OPENVINO: CompilerRow(
        "gradcam_server.graphs.compilers.openvino",
        auto_on=("CPU",),
        precisions=(*_FLOATS, Precision.INT8),
        extra="openvino",
        packages=("openvino",),
    ),
    Compiler.TENSORFLOW: _TENSORFLOW,
    Compiler.XLA: replace(
        _TENSORFLOW, auto_on=("CPU", "GPU"), extra="gpu", options={"jit_compile": True}
    ),
    # The same XLA as above, and slower on CPUs: it is for exports, and where TensorFlow has no GPU.
    Compiler.PJRT: CompilerRow(
        "gradcam_server.graphs.compilers.pjrt",
        auto_on=(),
        precisions=_FLOATS,
        extra="jax",
        packages=("jax", "jaxlib", "ml_dtypes", "safetensors"),
        # One is uploaded, one computed and one fetched.
        depths={"GPU": 3},
    ),
}
"""The compilers, in the order in which ``--compiler auto`` tries them."""

REFERENCE = Compiler.TENSORFLOW
"""Compiles the graphs that other compilers cannot; verified answers are compared with its own."""


def find_candidates(device: str) -> list[Compiler]:
    """Returns the compilers that ``--compiler auto`` tries on a device, such as "GPU:0"."""
    device_type = device.partition(":")[0]
    return [compiler for compiler, row in COMPILERS.items() if device_type in row.auto_on]


def find_compiler(compiler: Compiler) -> Prepare:
    """Imports a compiler; returns its ``prepare``.

    Raises:
        CompilerError: It is not installed.
    """
    row = COMPILERS[compiler]
    try:
        module = importlib.import_module(row.module)
    except ImportError as error:
        raise CompilerError(
            f"{compiler} is not installed ({error}): pip install 'gradcam-server[{row.extra}]'"
        ) from error
    return partial(module.prepare, **row.options)
