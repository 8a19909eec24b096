"""The models to load, from the settings."""

from pathlib import Path

import pytest

from gradcam_server.config.models import model_specs
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Outputs
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError


def specs(**options: tuple[str, ...]) -> dict[str, ModelSpec]:
    return {spec.name: spec for spec in model_specs(ServeConfig(**options))}  # type: ignore[arg-type]


def test_models_are_built_in_or_files() -> None:
    """NAME or NAME=PATH, in their order; the same source may have several names."""
    found = specs(model=("resnet50", "mine=dir=1/m.keras", "other=resnet50"), seed=3)  # type: ignore[arg-type]
    assert [(spec.name, spec.source) for spec in found.values()] == [
        ("resnet50", "resnet50"),
        ("mine", "dir=1/m.keras"),
        ("other", "resnet50"),
    ]
    assert found["resnet50"] == ModelSpec("resnet50", "resnet50", seed=3)


def test_weights_may_be_given_for_each_model() -> None:
    """MODEL=WEIGHTS is for one model, a plain value for the others."""
    found = specs(model=("a=vgg16", "b=vgg16"), weights=("b=file=1.h5", "random"))
    assert (found["a"].weights, found["b"].weights) == ("random", "file=1.h5")
    found = specs(model=("a=vgg16", "b=vgg16"), weights=("b=x",))
    assert (found["a"].weights, found["b"].weights) == ("imagenet", "x")
    assert specs(model=("vgg16",), weights=("dir=1/w.h5",))["vgg16"].weights == "dir=1/w.h5"


def test_weights_for_all_leave_files_alone() -> None:
    """A file has its weights; other weights for it are passed on only to be refused."""
    found = specs(model=("vgg16", "mine=m.keras"), weights=("random",))
    assert (found["vgg16"].weights, found["mine"].weights) == ("random", "imagenet")
    assert specs(model=("mine=m.keras",), weights=("random",))["mine"].weights == "random"


def test_models_have_versions() -> None:
    """NAME:VERSION=PATH; options are for one version."""
    config = ServeConfig(model=("a:2=new.keras", "a:1=old.keras"), labels=("a:1=names.txt",))
    new, old = model_specs(config)
    assert (new.name, new.version, new.source, new.labels) == ("a", "2", "new.keras", None)
    assert (old.id, old.labels) == ("a:1", Path("names.txt"))


def test_options_of_models_are_read() -> None:
    """Preprocessing, labels and sizes go by model; outputs are of files; modules are for all."""
    found = specs(
        model=("vgg16", "mine=m.keras"),
        preprocessing=("mine=tf",),
        outputs=("probabilities",),
        labels=("mine=names.txt",),
        input_size=("mine=160x200",),
        custom_objects=("one", "two"),
    )
    mine = found["mine"]
    assert (mine.preprocessing, mine.labels) == (Preprocessing.TF, Path("names.txt"))
    assert (mine.input_size, mine.custom_objects) == ((160, 200), ("one", "two"))
    assert (mine.outputs, found["vgg16"].outputs) == (Outputs.PROBABILITIES, None)
    other = found["vgg16"]
    assert (other.preprocessing, other.labels, other.input_size) == (None, None, None)
    assert specs(input_size=("8x9",))["resnet50"].input_size == (8, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ("random", "imagenet")}, "--weights was .* each must be MODEL=VALUE"),
        ({"labels": ("a.txt", "resnet=b.txt")}, "--labels was given as a.txt, resnet=b.txt"),
        ({"labels": ("resnet50=a", "resnet50=b")}, "--labels was given twice for resnet50"),
        ({"preprocessing": ("torhc",)}, "torhc: it must be one of none, caffe, torch, tf, lite"),
        ({"outputs": ("logit",)}, "logit: it must be one of logits, softmax, sigmoid, probab"),
        ({"input_size": ("224",)}, "224: it must be HEIGHTxWIDTH"),
        ({"input_size": ("0x5",)}, "0x5: it must be HEIGHTxWIDTH"),
        ({"model": ("resnet50", "resnet50")}, "two models of the name 'resnet50'"),
        ({"model": ("a=m.keras", "a=n.keras")}, "two models of the name 'a'"),
        ({"model": ("=m.keras",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
        ({"model": ("a:=m.keras",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
        ({"model": ("a:2",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
        ({"model": ("a:2=x", "a=y")}, "--model a: there are several.* it needs a version"),
        ({"model": ("a:2=x", "a:2=y")}, "there are two models of the name 'a:2'"),
        ({"model": ("a=",)}, "must be a name, NAME=PATH or NAME:VERSION=PATH"),
    ],
)
def test_contradicting_options_are_refused(
    options: dict[str, tuple[str, ...]], message: str
) -> None:
    """Before anything is loaded; the message says what would be right."""
    with pytest.raises(StartupError, match=message):
        specs(**options)
