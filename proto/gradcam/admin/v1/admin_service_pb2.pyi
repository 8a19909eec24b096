from gradcam.v1 import explanation_service_pb2 as _explanation_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("models", "unchanged_settings")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_explanation_service_pb2.Model]
    unchanged_settings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[_Union[_explanation_service_pb2.Model, _Mapping]]] = ..., unchanged_settings: _Optional[_Iterable[str]] = ...) -> None: ...
