"""OpenVINO is imported without what a server of exports does not need."""

import subprocess
import sys

import pytest

_RUNTIME = "import gradcam_server.graphs.compilers.openvino_runtime"
_CONVERTER = "from openvino.tools.ovc import convert_model"


@pytest.mark.parametrize(
    "program",
    [
        _RUNTIME,
        f"{_RUNTIME}; {_CONVERTER}",
        f"import openvino; {_RUNTIME}; {_CONVERTER}; assert openvino.convert_model",
    ],
    ids=["left out", "imported after it", "imported before it"],
)
def test_the_converter_is_imported_by_those_who_need_it(program: str) -> None:
    """It takes longer to import than the runtime, but stays there for a compiler that converts."""
    wanted = "tools.ovc" in program
    check = f"{program}\nimport sys\nassert ('openvino.tools.ovc' in sys.modules) is {wanted}"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
