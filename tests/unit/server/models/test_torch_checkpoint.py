"""The reader of PyTorch state dicts: right on good files, safe on all others."""

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.torch_checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    read_torch_checkpoint,
)

MAGIC, VERSION, FACTS = (
    pickle.dumps(value, protocol=2)
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
)
HEADER = MAGIC + VERSION + FACTS
NO_TENSORS = pickle.dumps(OrderedDict(), protocol=2)
NO_KEYS = pickle.dumps([], protocol=2)


class Tensor:
    """Pickled as torch pickles a tensor, with any offset, sizes and strides."""

    def __init__(self, offset: Any, shape: Any, strides: Any, storage: Any = None) -> None:
        self.storage = storage or Storage()
        self.arguments: Any = (self.storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Storage:
    def __init__(self, key: Any = "0", count: Any = 6, view: Any = None, tag: str = "storage"):
        self.id = (tag, torch.FloatStorage, key, "cpu", count, view)


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.id if isinstance(obj, Storage) else None


def dump(value: Any) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def storage(values: Any, count: int | None = None) -> bytes:
    content = np.asarray(values, "<f4")
    return np.array([content.size if count is None else count], "<i8").tobytes() + content.tobytes()


def legacy(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def read(content: bytes, folder: Path) -> dict[str, Any]:
    path = folder / "weights.pth"
    path.write_bytes(content)
    return read_torch_checkpoint(path)


def call(name: str, argument: str) -> bytes:
    """Returns a pickle that calls ``module function`` with one string."""
    module, function = name.split()
    text = b"X" + len(argument).to_bytes(4, "little") + argument.encode()
    return f"\x80\x02c{module}\n{function}\n".encode("latin-1") + text + b"\x85R."


def assert_same(ours: dict[str, Any], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        expected = tensor.detach().numpy()
        assert ours[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(ours[name], expected, err_msg=name, strict=True)


def test_the_real_checkpoint_reads_as_torch_reads_it() -> None:
    """Every tensor of the shipped weights has torch's values, shape and dtype."""
    path = efficientnet_lite0.default_checkpoint()
    assert_same(read_torch_checkpoint(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.float32,
        torch.float64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_every_dtype_keeps_its_values(dtype: torch.dtype, tmp_path: Path) -> None:
    """A tensor keeps its dtype."""
    tensors = {"x": torch.tensor([[0, 1, 2], [3, 100, 5]]).to(dtype)}
    assert_same(read(legacy(tensors), tmp_path), tensors)


def test_views_are_read_through_their_strides(tmp_path: Path) -> None:
    """Transposed, sliced and shared tensors have the right elements."""
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "base": base,
        "permuted": base.permute(2, 0, 1),
        "sliced": base[1, ::2, 1:3],
        "scalar": base[1, 2, 3],
        "empty": torch.zeros(0, 5),
        "alone": torch.arange(3.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    ours = read(legacy(tensors), tmp_path)
    assert_same(ours, tensors)
    assert np.shares_memory(ours["base"], ours["sliced"])


def test_a_module_s_state_dict_reads(tmp_path: Path) -> None:
    """The attribute that torch adds to a module's state dict is ignored."""
    tensors = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    assert_same(read(legacy(tensors), tmp_path), tensors)


def test_tensors_saved_from_a_gpu_read(tmp_path: Path) -> None:
    """The storage types of old GPU checkpoints are known, and the device is ignored."""
    tensors = {"x": torch.arange(3.0)}
    content = legacy(tensors).replace(b"torch\nFloatStorage", b"torch.cuda\nFloatStorage")
    assert_same(read(content, tmp_path), tensors)


def test_tensors_cannot_be_written_to(tmp_path: Path) -> None:
    """Tensors that share a storage are read-only."""
    ours = read(legacy({"x": torch.arange(3.0)}), tmp_path)
    assert not ours["x"].flags.writeable


@pytest.mark.parametrize("place", ["magic", "facts", "tensors", "value", "keys", "key"])
def test_a_call_is_refused_wherever_it_stands(place: str, tmp_path: Path) -> None:
    """A shell command in any of the pickles is named, and never run."""
    marker = tmp_path / "marker"
    evil = call("posix system", f"touch {marker}")
    nested = evil[2:-1]
    content = {
        "magic": evil,
        "facts": MAGIC + VERSION + evil,
        "tensors": HEADER + evil,
        "value": HEADER + b"\x80\x02}X\x01\x00\x00\x00x" + nested + b"s." + NO_KEYS,
        "keys": HEADER + NO_TENSORS + evil,
        "key": HEADER + NO_TENSORS + b"\x80\x02]" + nested + b"a.",
    }[place]
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        read(content, tmp_path)
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists(), "the payload must be able to do what was prevented"


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "builtins eval",
        "__builtin__ eval",
        "builtins getattr",
        "numpy load",
        "numpy.core.multiarray _reconstruct",
        "torch load",
        "torch.hub load",
        "torch.storage _load_from_bytes",
        "torch._utils _rebuild_tensor",
        "torch BFloat16Storage",
        "collections defaultdict",
        "collections OrderedDict.fromkeys",
        "gradcam_server.models.torch_checkpoint read_torch_checkpoint",
    ],
)
def test_any_other_global_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Only the globals of a state dict are allowed; similar names are not."""
    with pytest.raises(UnsafeCheckpointError, match=re.escape(name.replace(" ", "."))):
        read(HEADER + call(name, "x"), tmp_path)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (b"(ios\nsystem\n.", r"os\.system"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"NN\x93.", "STACK_GLOBAL"),
        (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"(ccollections\nOrderedDict\no.", "OBJ"),
        (b"P0\n.", "PERSID"),
    ],
)
def test_any_other_opcode_is_refused(code: bytes, reason: str, tmp_path: Path) -> None:
    """The other ways to a global, copyreg's registry among them, are closed too."""
    with pytest.raises(UnsafeCheckpointError, match=reason):
        read(HEADER + b"\x80\x02" + code, tmp_path)


def test_pickles_of_newer_protocols_are_refused(tmp_path: Path) -> None:
    """Python's default pickle protocol is refused."""
    with pytest.raises(UnsafeCheckpointError):
        read(HEADER + pickle.dumps({"x": print}), tmp_path)


OUTSIDE, NUMBERS, RANK = "outside its storage", "whole numbers", "sizes and"


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "reason"),
    [
        (0, (7,), (1,), OUTSIDE),
        (1, (6,), (1,), OUTSIDE),
        (0, (2, 3), (4, 1), OUTSIDE),
        (0, (2,), (6,), OUTSIDE),
        (6, (), (), OUTSIDE),
        (2**63, (1,), (1,), OUTSIDE),
        (0, (2**70,), (2**70,), OUTSIDE),
        (0, (7,), (0,), OUTSIDE),
        (0, (2**40, 2**40), (0, 0), OUTSIDE),
        (-1, (2,), (1,), NUMBERS),
        (5, (2,), (-1,), NUMBERS),
        (0, (-2, -3), (1, 1), NUMBERS),
        (0.0, (6,), (1,), "BINFLOAT"),
        (None, (6,), (1,), NUMBERS),
        (0, ("6",), (1,), NUMBERS),
        (0, "6", "1", NUMBERS),
        (0, (2, 3), (1,), RANK),
        (0, (1,) * 65, (1,) * 65, RANK),
        (0, 6, 1, "damaged"),
        (0, (0, 2**70), (1, 1), "damaged"),
    ],
)
def test_no_tensor_leaves_its_storage(
    offset: Any, shape: Any, strides: Any, reason: str, tmp_path: Path
) -> None:
    """Claims that would read other memory, or reserve more than the file holds, fail."""
    content = HEADER + dump({"x": Tensor(offset, shape, strides)}) + dump(["0"])
    with pytest.raises(CheckpointError, match=reason):
        read(content + storage(range(6)), tmp_path)


def test_the_crafted_files_are_otherwise_right(tmp_path: Path) -> None:
    """The files of the test above fail for their claims, not for how they are made."""
    content = HEADER + dump({"x": Tensor(1, (2, 2), (3, 1))}) + dump(["0"])
    ours = read(content + storage(range(6)), tmp_path)
    np.testing.assert_array_equal(ours["x"], [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    "reference",
    [
        Storage(count=-1),
        Storage(count="6"),
        Storage(key=0),
        Storage(view=("0", 0, 6)),
        Storage(tag="module"),
        {"no": "storage"},
    ],
)
def test_only_plain_storages_are_referred_to(reference: Any, tmp_path: Path) -> None:
    """Modules, views of storages and impossible sizes are refused."""
    content = HEADER + dump({"x": Tensor(0, (6,), (1,), reference)}) + dump(["0"])
    with pytest.raises(CheckpointError, match="other than a storage|has no storage"):
        read(content + storage(range(6)), tmp_path)


@pytest.mark.parametrize("count", [7, 2**40, 2**61])
def test_no_storage_is_larger_than_the_file(count: int, tmp_path: Path) -> None:
    """A size larger than the file is an error, even where it is stated twice."""
    content = HEADER + dump({"x": Tensor(0, (6,), (1,), Storage(count=count))}) + dump(["0"])
    with pytest.raises(CheckpointError, match="truncated"):
        read(content + storage(range(6), count), tmp_path)


@pytest.mark.parametrize(
    "tail",
    [
        dump([]),
        dump(["1"]) + storage(range(6)),
        dump(["0", "0"]) + storage(range(6)) * 2,
        dump([("0",)]) + storage(range(6)),
        dump("0") + storage(range(6)),
        dump(["0"]) + storage(range(5)),
        dump(["0"]) + storage(range(5), count=6),
        dump(["0"]) + storage(range(6), count=-6),
        dump(["0"]),
    ],
)
def test_storages_must_be_those_that_were_declared(tail: bytes, tmp_path: Path) -> None:
    """A storage that is missing, repeated or of another size is an error."""
    with pytest.raises(CheckpointError):
        read(HEADER + dump({"x": Tensor(0, (6,), (1,))}) + tail, tmp_path)


def test_a_storage_has_one_size(tmp_path: Path) -> None:
    """A second reference cannot enlarge a storage behind the bounds check."""
    tensors = {"x": Tensor(0, (6,), (1,)), "y": Tensor(0, (8,), (1,), Storage(count=8))}
    with pytest.raises(CheckpointError, match="two sizes"):
        read(HEADER + dump(tensors) + dump(["0"]) + storage(range(6)), tmp_path)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"epoch": 3}, "'epoch' is of type int"),
        ({"state_dict": {}}, "'state_dict' is of type dict"),
        ([], "of type list"),
        ({1: 2}, "not names"),
    ],
)
def test_what_is_no_state_dict_is_refused(state: Any, reason: str, tmp_path: Path) -> None:
    """The error says what was found instead."""
    with pytest.raises(CheckpointError, match=reason):
        read(HEADER + dump(state) + NO_KEYS, tmp_path)


def test_the_zip_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """PyTorch's zip format is recognised, and the error says how to convert it."""
    file = io.BytesIO()
    torch.save({"x": torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match="_use_new_zipfile_serialization=False"):
        read(file.getvalue(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"GIF89a", b"\x89HDF\r\n", MAGIC])
def test_other_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    """The error of a wrong file says which file it is."""
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read(content, tmp_path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    """A missing file is another error than a damaged file."""
    with pytest.raises(FileNotFoundError):
        read_torch_checkpoint(tmp_path / "weights.pth")


SMALL = legacy({"x": torch.arange(6.0).reshape(2, 3).T, "y": torch.tensor([1, 2])})


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    """A file cut off anywhere is an error."""
    for end in range(len(SMALL)):
        with pytest.raises(CheckpointError):
            read(SMALL[:end], tmp_path)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_no_damaged_byte_raises_anything_else(flip: int, tmp_path: Path) -> None:
    """One wrong byte anywhere gives tensors or a CheckpointError, and no other exception."""
    for position in range(len(SMALL)):
        content = bytearray(SMALL)
        content[position] ^= flip
        try:
            ours = read(bytes(content), tmp_path)
        except CheckpointError:
            continue
        assert all(isinstance(array, np.ndarray) for array in ours.values())


FRAGMENTS = [
    *(bytes([code]) for code in b"(tNu}]).R0sae\x85\x86\x87\x88Qb2"),
    b"q\x00",
    b"h\x00",
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"K\x02",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    b"X\x01\x00\x00\x00x",
    b"X\x07\x00\x00\x00storage",
    b"X\xff\xff\xff\x7fx",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    dump(Storage())[2:-1],
    dump(Tensor(0, (6,), (1,)))[2:-1],
]


@hypothesis.settings(max_examples=1000, deadline=None, database=None)
@hypothesis.given(code=st.lists(st.sampled_from(FRAGMENTS), max_size=12))
def test_no_program_raises_anything_else(
    code: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Allowed opcodes in any order give tensors or a CheckpointError."""
    content = HEADER + b"\x80\x02" + b"".join(code) + b"." + NO_KEYS
    try:
        ours = read(content, tmp_path_factory.getbasetemp())
    except CheckpointError:
        return
    assert ours == {}


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "code",
    [
        b")" + b"q\x00h\x00\x86" * 5000 + b".",
        b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns.",
        b"]" + b"q\x00h\x00a" * 5000 + b".",
    ],
)
def test_deep_nesting_costs_neither_stack_nor_time(code: bytes, tmp_path: Path) -> None:
    """Tuples of tuples overflow no recursion and are never hashed."""
    with pytest.raises(CheckpointError):
        read(HEADER + b"\x80\x02" + code + NO_KEYS, tmp_path)
