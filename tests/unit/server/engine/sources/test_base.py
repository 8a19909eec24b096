"""A source of graphs is opened, or the error says what to install."""

import sys

import pytest

from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.sources.base import open_source
from gradcam_server.errors import StartupError
from gradcam_server.graphs.executable import CompilationCounter

MODEL_SOURCE = "gradcam_server.engine.sources.model"


class WithoutPackage:
    """Fails to import the source of models, as if a package that it imports were missing."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == MODEL_SOURCE:
            raise ModuleNotFoundError(f"No module named {self._package!r}", name=self._package)


def open_model_without(package: str, patch: pytest.MonkeyPatch) -> None:
    patch.delitem(sys.modules, MODEL_SOURCE, raising=False)
    patch.setattr(sys, "meta_path", [WithoutPackage(package), *sys.meta_path])
    config = ServeConfig(model=("resnet50",))
    (spec,) = model_specs(config)
    open_source(spec, config, CompilationCounter())


@pytest.mark.parametrize("package", ["tensorflow", "keras", "h5py"])
def test_a_model_without_tensorflow_is_refused(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the package, how to install it, and the way without it."""
    said = rf"resnet50 needs {package}: pip install 'gradcam-server\[cpu\]'.*gradcam export"
    with pytest.raises(StartupError, match=said):
        open_model_without(package, monkeypatch)


def test_another_missing_module_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that no extra installs is not said to be TensorFlow's."""
    with pytest.raises(ModuleNotFoundError, match="somewhere"):
        open_model_without("somewhere", monkeypatch)
