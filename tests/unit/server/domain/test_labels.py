"""Class names."""

import pytest

from gradcam_server.domain.labels import ClassLabel, ClassLabels, imagenet_labels
from gradcam_server.errors import InvalidRequestError


def test_imagenet_has_its_thousand_classes_in_keras_order() -> None:
    """Known indices have their names."""
    labels = imagenet_labels()
    assert len(labels) == 1000
    known = {0: "tench", 281: "tabby", 285: "Egyptian cat", 967: "espresso", 999: "toilet tissue"}
    assert {index: labels.name(index) for index in known} == known


@pytest.mark.parametrize(
    "name", ["Egyptian cat", "egyptian_cat", "EGYPTIAN  CAT", "n02124075", 285]
)
def test_a_class_answers_to_each_of_its_names(name: str | int) -> None:
    """A class is found by any case, with underscores, and by its WordNet id."""
    assert imagenet_labels().index(name) == 285


def test_every_imagenet_name_finds_its_class_unless_it_is_shared() -> None:
    """Only crane and maillot name several classes."""
    labels = imagenet_labels()
    ambiguous = set()
    for index in range(1000):
        try:
            assert labels.index(labels.name(index)) == index
        except InvalidRequestError:
            ambiguous.add(labels.name(index))
    assert ambiguous == {"crane", "maillot"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("crane", r"fits several classes: 134 \(crane\), 517 \(crane\); use an index"),
        ("egyptian cta", r"unknown class.*did you mean 285 \(Egyptian cat\)"),
        ("zzzzzz", "unknown class 'zzzzzz'$"),
        ("", "unknown class"),
        (1000, "out of range: the model has 1000 classes, 0 to 999"),
        (-1, "out of range"),
    ],
)
def test_unknown_classes_are_refused_with_help(target: str | int, message: str) -> None:
    """The error suggests close names or the range of indices."""
    with pytest.raises(InvalidRequestError, match=message):
        imagenet_labels().index(target)


@pytest.mark.parametrize("wanted", ["bird", "catt", "x" * 500])
def test_a_model_of_few_classes_lists_them(wanted: str) -> None:
    """Classes are listed with their index; a long name is shortened."""
    labels = ClassLabels([ClassLabel("cat"), ClassLabel("dog"), ClassLabel("")])
    with pytest.raises(
        InvalidRequestError, match=r"; the model has 0 \(cat\), 1 \(dog\), 2$"
    ) as error:
        labels.index(wanted)
    assert len(str(error.value)) < 160


def test_long_lists_are_cut() -> None:
    """Errors stay short for names of thousands of classes or of thousands of characters."""
    labels = ClassLabels([ClassLabel("twin")] * 3000)
    with pytest.raises(InvalidRequestError, match=r", 9 \(twin\) and 2990 more; use an index$"):
        labels.index("twin")
    labels = ClassLabels([ClassLabel("long" * 1000)])
    with pytest.raises(InvalidRequestError) as error:
        labels.index("other")
    assert len(str(error.value)) < 200


def test_a_name_goes_before_another_class_alias() -> None:
    """A synonym of one class does not hide the name of another."""
    labels = ClassLabels([ClassLabel("projectile", ("missile",)), ClassLabel("missile")])
    assert labels.index("missile") == 1


def test_classes_without_names_are_chosen_by_index() -> None:
    """No name finds an unnamed class, not even the empty name."""
    labels = ClassLabels([ClassLabel(""), ClassLabel("yes"), ClassLabel("")])
    assert labels.index(2) == 2
    with pytest.raises(InvalidRequestError, match="unknown class ''"):
        labels.index("")
