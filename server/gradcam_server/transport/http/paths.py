"""The part of a path that names a model."""

from starlette.convertors import StringConvertor, register_url_convertor


class _NameConvertor(StringConvertor):
    """A model's name or version: what follows a colon is the method."""

    regex = "[^/:]+"


register_url_convertor("model", _NameConvertor())

MODEL = "{name:model}"
MODEL_VERSION = "{name:model}/versions/{version:model}"
