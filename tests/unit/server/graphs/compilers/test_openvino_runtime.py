"""OpenVINO is imported without what a server of exports does not need."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openvino.opset13 as opset
import pytest

from gradcam_server.domain.options import Precision
from gradcam_server.graphs.compilers.openvino_runtime import CpuModel, openvino
from gradcam_server.graphs.threads import set_compute_threads

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


@pytest.fixture
def restored_threads() -> Iterator[None]:
    yield
    set_compute_threads(None)


@pytest.mark.parametrize(("spare", "pinned"), [(0, True), (1, False)], ids=["all cores", "a part"])
def test_threads_are_tied_to_cores_only_if_they_have_all(
    restored_threads: None, monkeypatch: pytest.MonkeyPatch, spare: int, pinned: bool
) -> None:
    """Two servers of one thread each would share the first core and leave the second idle."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    set_compute_threads(2 - spare)
    compiled: list[Any] = []
    compile_model = openvino.Core.compile_model

    def noted(*arguments: Any) -> Any:
        compiled.append(compile_model(*arguments))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", noted)
    parameter = opset.parameter([1, 4], name="images")
    doubled = opset.add(parameter, parameter)
    model = openvino.Model([doubled], [parameter], "tiny")
    CpuModel(model, [], Precision.FLOAT32).divide(1)
    assert [one.get_property("ENABLE_CPU_PINNING") for one in compiled] == [pinned] * 2
