"""The names of preprocessings, and their properties that need no TensorFlow."""

from enum import StrEnum


class Preprocessing(StrEnum):
    """How pixel values are scaled before the network."""

    NONE = "none"
    CAFFE = "caffe"
    TORCH = "torch"
    TF = "tf"
    LITE = "lite"


# The preprocessings with which models from files were trained most often.
LIKELY = (Preprocessing.NONE, Preprocessing.TF, Preprocessing.TORCH, Preprocessing.CAFFE)

UNDECLARED = (
    "%s: no preprocessing is declared, and no layer of the model scales pixels, so it is given RGB "
    "from 0 to 255. If it was trained on other values, its answers are wrong, however confident "
    "they are. Declare what it was trained with: --preprocessing tf (RGB from -1 to 1), torch (RGB "
    "from 0 to 1, minus ImageNet's mean, divided by its standard deviation), caffe (BGR minus "
    "ImageNet's mean) or none (RGB from 0 to 255: this warning ends). Other scales, such as RGB "
    "from 0 to 1, need a Rescaling layer in the model."
)

# The RGB colour that becomes zero; the ImageNet mean where the network scales pixels itself.
ZERO_COLORS = {
    Preprocessing.NONE: (123.68, 116.779, 103.939),
    Preprocessing.CAFFE: (123.68, 116.779, 103.939),
    Preprocessing.TORCH: (123.675, 116.28, 103.53),
    Preprocessing.TF: (127.5, 127.5, 127.5),
    Preprocessing.LITE: (127.0, 127.0, 127.0),
}


def takes_bgr(how: Preprocessing) -> bool:
    """Returns whether the network was trained on BGR."""
    return how is Preprocessing.CAFFE
