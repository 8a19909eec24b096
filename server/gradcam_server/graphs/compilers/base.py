"""What makes a graph run: XLA, TensorFlow's own executor, OpenVINO.

A compiler is a function from a graph and a precision to something that gives what runs a batch
size. A fourth needs such a function, and a row in ``_COMPILERS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from gradcam_server.domain.options import Compiler, Precision
from gradcam_server.errors import CompilerError
from gradcam_server.graphs.executable import Places

if TYPE_CHECKING:
    from gradcam_server.graphs.explanation import ExplanationGraph

Prepared = Callable[[int], Places]
"""Makes what runs a batch size. All sizes share one copy of the weights."""

Prepare = Callable[["ExplanationGraph", Precision], Prepared]
"""Both raise CompilerError, and DisconnectedLayerError."""


_COMPILERS = {
    Compiler.OPENVINO: "gradcam_server.graphs.compilers.openvino",
    Compiler.TENSORFLOW: "gradcam_server.graphs.compilers.tensorflow",
    Compiler.XLA: "gradcam_server.graphs.compilers.xla",
}


def find_compiler(compiler: Compiler) -> Prepare:
    """Returns a compiler's function.

    Raises:
        CompilerError: It is not installed.
    """
    try:
        module = importlib.import_module(_COMPILERS[compiler])
    except ImportError as error:
        raise CompilerError(
            f"{compiler} is not installed ({error}): pip install 'gradcam-server[{compiler}]'"
        ) from error
    return cast("Prepare", module.prepare)
