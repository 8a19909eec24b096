"""Reads PyTorch state dicts without PyTorch, and without running code that a pickle names.

A ``.pth`` file in the format that preceded PyTorch 1.6, still written by ``_legacy_save``
of https://github.com/pytorch/pytorch/blob/main/torch/serialization.py, is a sequence:

    pickle    magic number
    pickle    protocol version
    pickle    facts about the machine that wrote it, which are not used
    pickle    the state dict; its tensors name their storages by key
    pickle    the list of storage keys
    storages  in the order of that list: int64 count, then the elements, little-endian

A pickle is a program. Even with ``find_class`` restricted, ``pickle.Unpickler`` lets it
call ``__setstate__`` and ``setattr`` on allowed objects (BUILD), and four bytes of it
(LONG_BINPUT) allocate 64 GB. A state dict needs fewer than half of the opcodes: these are
interpreted here, over plain values without code, and all other opcodes are refused.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_MAX_DIMENSIONS = 64  # NumPy's limit


class CheckpointError(ValueError):
    """The file is not an intact state dict in PyTorch's legacy format."""


class UnsafeCheckpointError(CheckpointError):
    """The file asks for objects other than tensors; nothing of it was run."""


def read_torch_checkpoint(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads a state dict that ``torch.save`` wrote in its legacy (non-zip) format.

    Args:
        path: The ``.pth`` file.

    Returns:
        Read-only arrays by name, in the order of the file, with the shape and dtype of the
        saved tensors. Tensors that shared a storage share memory; their strides are kept.

    Raises:
        UnsafeCheckpointError: The file asks for objects other than tensors.
        CheckpointError: The file is damaged, or is not a state dict in this format.
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    try:
        return _read(data)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        # A damaged pickle can misuse its values in every one of these ways.
        raise CheckpointError(f"{path}: truncated or damaged ({error!r})") from error


@dataclass(frozen=True)
class _Storage:
    """The type and number of the elements of a storage, which follow in the file."""

    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage. Offset and strides count elements."""

    storage: _Storage
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storage: bytes) -> npt.NDArray[Any]:
        dtype = self.storage.dtype
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        strides = [dtype.itemsize * stride for stride in self.strides]
        return np.ndarray(self.shape, dtype, storage, dtype.itemsize * self.offset, strides)


def _read(data: bytes) -> dict[str, npt.NDArray[Any]]:
    if data.startswith(b"PK"):
        raise CheckpointError(
            "this is PyTorch's zip format; save it again with "
            "torch.save(state_dict, path, _use_new_zipfile_serialization=False)"
        )
    file = io.BytesIO(data)
    storages: dict[str, _Storage] = {}
    if _unpickle(file, storages) != _MAGIC_NUMBER:
        raise CheckpointError("the magic number of PyTorch's legacy format is missing")
    if _unpickle(file, storages) != _PROTOCOL_VERSION:
        raise CheckpointError(f"the protocol version is not {_PROTOCOL_VERSION}")
    _unpickle(file, storages)
    tensors = _unpickle(file, storages)
    if not isinstance(tensors, dict):
        raise CheckpointError(f"its content is of type {type(tensors).__name__}, not a state dict")
    for name, tensor in tensors.items():
        if not isinstance(tensor, _Tensor):
            raise CheckpointError(f"{name!r} is of type {type(tensor).__name__}, not a tensor")
    keys = _unpickle(file, storages)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise CheckpointError("its storages have no names")
    if sorted(keys) != sorted(storages):
        raise CheckpointError("the storages listed are not those that the tensors use")
    contents = {key: _read_storage(file, storages[key]) for key in keys}
    return {name: tensor.array(contents[tensor.key]) for name, tensor in tensors.items()}


def _read_storage(file: io.BytesIO, storage: _Storage) -> bytes:
    count = int.from_bytes(file.read(8), "little", signed=True)
    if count != storage.count:
        raise CheckpointError(f"a storage of {storage.count} elements declares {count}")
    content = file.read(count * storage.dtype.itemsize)
    if len(content) != count * storage.dtype.itemsize:
        raise CheckpointError("truncated within a storage")
    return content


def _ordered_dict() -> dict[str, object]:
    return {}


def _rebuild_tensor(
    reference: object,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    _requires_grad: object,
    _hooks: object,
    _metadata: object = None,
) -> _Tensor:
    match reference:
        case (_Storage() as storage, str(key)):
            pass
        case _:
            raise CheckpointError("a tensor has no storage")
    extents = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    if not all(isinstance(extent, int) and extent >= 0 for extent in extents):
        raise CheckpointError("a tensor's offset, sizes and strides must be whole numbers")
    tensor = _Tensor(storage, key, offset, tuple(shape), tuple(strides))
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
    )
    if 0 not in shape and (last >= storage.count or math.prod(shape) > storage.count):
        raise CheckpointError(f"a tensor of shape {tensor.shape} reaches outside its storage")
    return tensor


def _rebuild_parameter(tensor: object, _requires_grad: object, _hooks: object) -> object:
    return tensor


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
}
_DTYPES = {
    f"{module} {name}Storage": np.dtype(code)
    for module in ("torch", "torch.cuda")
    for name, code in {
        "Bool": "?",
        "Byte": "u1",
        "Char": "i1",
        "Short": "<i2",
        "Int": "<i4",
        "Long": "<i8",
        "Half": "<f2",
        "Float": "<f4",
        "Double": "<f8",
    }.items()
}
_GLOBALS: dict[str, object] = {**_FUNCTIONS, **_DTYPES}


def _unpickle(file: io.BytesIO, storages: dict[str, _Storage]) -> object:
    """Interprets one pickle of a state dict; the file is then at the pickle's end."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        return items

    def last(count: int) -> list[Any]:
        return [stack.pop() for _ in range(count)][::-1]

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                break
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(last(int(opcode.name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "APPEND":
                _extend(last(1), stack[-1])
            case "APPENDS":
                _extend(since_mark(), stack[-1])
            case "SETITEM":
                _update(last(2), stack[-1])
            case "SETITEMS":
                _update(since_mark(), stack[-1])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" if argument in _GLOBALS:
                stack.append(_GLOBALS[argument])
            case "REDUCE":
                function, arguments = last(2)
                if not any(function is known for known in _FUNCTIONS.values()):
                    raise CheckpointError("it calls what is not a function")
                stack.append(function(*arguments))
            case "BINPERSID":
                stack.append(_refer(stack.pop(), storages))
            case "BUILD":
                stack.pop()  # the attribute _metadata of the state dict
            case "GLOBAL" | "INST":
                raise UnsafeCheckpointError(
                    f"it asks for {argument.replace(' ', '.')}, which is no tensor that "
                    "this reader knows; refused, and nothing of the file was run"
                )
            case _:
                raise UnsafeCheckpointError(
                    f"it uses the pickle opcode {opcode.name}, which torch.save does not write "
                    "for a state dict; refused, and nothing of the file was run"
                )
    return stack.pop()


def _extend(items: list[Any], target: Any) -> None:
    if not isinstance(target, list):
        raise CheckpointError("it appends to what is not a list")
    target.extend(items)


def _update(items: list[Any], target: Any) -> None:
    keys, values = items[::2], items[1::2]
    # Nested tuples as keys would take exponential time to hash.
    if not isinstance(target, dict) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("it holds a dict whose keys are not names")
    target.update(zip(keys, values, strict=True))


def _refer(saved_id: object, storages: dict[str, _Storage]) -> tuple[_Storage, str]:
    match saved_id:
        case ("storage", np.dtype() as dtype, str(key), str(), int(count), None) if count >= 0:
            storage = _Storage(dtype, count)
        case _:
            raise CheckpointError("it refers to something other than a storage")
    if storages.setdefault(key, storage) != storage:
        raise CheckpointError(f"the storage {key!r} has two dtypes or two sizes")
    return storage, key
