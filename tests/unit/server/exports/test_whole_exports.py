"""An export is loaded only if its files, manifest and graphs are as they were written."""

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gradcam_server.cli import main
from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.engine import Engine
from gradcam_server.errors import StartupError
from gradcam_server.exports.files import hash_file
from gradcam_server.exports.manifest import MANIFEST, read_manifest
from gradcam_server.graphs.compilers.openvino_runtime import read_model
from support.tiny_export import SIZE, write_tiny_export

Break = Callable[[Path], object]

TOO_LONG_S = 20


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """Reading a pipe or an endless device would hang the test."""

    def fail(*_: object) -> None:
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, fail)
    signal.alarm(TOO_LONG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    write_tiny_export(folder)
    return folder


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the export, which tests may break."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def settings(folder: Path, **more: Any) -> ServeConfig:
    return ServeConfig(**{"model": (f"tiny={folder}",), "batch_sizes": (1, 4), **more})


def start(folder: Path) -> Engine:
    engine = Engine(settings(folder))
    engine.warm_up()
    return engine


def change(key: str, value: object) -> Break:
    """Changes the value of a key of the manifest, given as a dotted path."""

    def apply(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        *path, last = key.split(".")
        place: Any = document
        for one in path:
            place = place[int(one) if isinstance(place, list) else one]
        place[int(last) if isinstance(place, list) else last] = value
        (folder / MANIFEST).write_text(json.dumps(document))

    return apply


def remove(key: str) -> Break:
    def apply(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        del document[key]
        (folder / MANIFEST).write_text(json.dumps(document))

    return apply


def put(name: str, make: Callable[[Path], object]) -> Break:
    """Replaces a file by the result of a function of its path."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


def put_hashed(name: str, content: bytes) -> Break:
    """Replaces a file, and its hash and size in the manifest."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)
        document = json.loads((folder / MANIFEST).read_text())
        document["sha256"][name] = hash_file(folder / name)
        document["sizes"][name] = len(content)
        (folder / MANIFEST).write_text(json.dumps(document))

    return apply


def _listen(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets must be short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def _link_out(path: Path) -> None:
    """Makes a link to a file outside the folder."""
    outside = path.parent.parent / "outside"
    outside.write_bytes(b"")
    path.symlink_to(outside)


def _unhash(name: str) -> Break:
    def apply(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        del document["sha256"][name], document["sizes"][name]
        (folder / MANIFEST).write_text(json.dumps(document))

    return apply


def _name_outside(name: str) -> Break:
    """Adds an existing file outside the folder to the manifest."""

    def apply(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.write_bytes(b"")
        document = json.loads((folder / MANIFEST).read_text())
        path = name.format(outside=outside)
        document["sha256"][path], document["sizes"][path] = hash_file(outside), 0
        (folder / MANIFEST).write_text(json.dumps(document))

    return apply


FILES: list[tuple[str, Break, str]] = [
    ("a pipe", put("graph_0.bin", os.mkfifo), "not a regular file"),
    ("a device", put("graph_0.xml", lambda path: path.symlink_to("/dev/zero")), "link out"),
    ("a socket", put("graph_0.bin", _listen), "not a regular file"),
    ("a folder", put("graph_0.bin", lambda path: path.mkdir()), "not a regular file"),
    ("a link out", put("graph_0.bin", _link_out), "link out of the export"),
    ("a broken link", put("graph_0.bin", lambda path: path.symlink_to("none")), "not whole"),
    ("a loop of links", put("graph_0.bin", lambda path: path.symlink_to(path)), "not whole"),
    ("a longer file", lambda folder: os.truncate(folder / "graph_0.bin", 10**6), "has 1,000,000"),
    ("weights without hash", _unhash("graph_0.bin"), "sha256 must have graph_0.bin"),
    ("a graph without hash", _unhash("graph_0.xml"), "sha256 must have graph_0.xml"),
    ("a path up", _name_outside("../outside"), "not a path in its folder"),
    ("a path down and up", _name_outside("a/../../outside"), "not a path in its folder"),
    ("an absolute path", _name_outside("{outside}"), "not a path in its folder"),
    ("no path", _name_outside(""), "not a path in its folder"),
    ("a size too few", change("sizes", {}), "sizes and sha256 must name the same files"),
    ("a manifest that is a pipe", put(MANIFEST, os.mkfifo), "not a regular file"),
    ("a manifest elsewhere", put(MANIFEST, _link_out), "link out of the export"),
    ("an endless manifest", put(MANIFEST, lambda path: path.symlink_to("/dev/zero")), "link out"),
]

MANIFESTS: list[tuple[str, Break, str]] = [
    (
        "deeply nested",
        lambda folder: (folder / MANIFEST).write_text("[" * 10**6),
        "nested too deeply",
    ),
    (
        "deeply nested within",
        lambda folder: (folder / MANIFEST).write_text('{"a":' * 10**5),
        "nested too deeply",
    ),
    (
        "huge",
        lambda folder: os.truncate(folder / MANIFEST, 10**9),
        "more than 16,777,216 bytes",
    ),
    ("a list", lambda folder: (folder / MANIFEST).write_text("[]"), "format is missing"),
    ("not UTF-8", lambda folder: (folder / MANIFEST).write_bytes(b'{"\xff":1}'), "not JSON"),
    ("an unknown key", change("plugin", "evil.so"), "plugin is not a key"),
    ("a missing key", remove("default_layer"), "default_layer is missing"),
    ("an unknown key inside", change("graphs.0.plugin", 1), r"graphs\[0\].plugin is not a key"),
    ("a text for a number", change("max_targets", "5"), "max_targets must be a whole number"),
    ("a truth for a number", change("max_targets", True), "max_targets must be a whole number"),
    ("null", change("labels", None), "labels must be a list"),
    ("a number for a name", change("labels.0.0", 7), r"labels\[0\]\[0\] must be a text"),
    ("a class without name", change("labels.0", []), "each of labels"),
    ("half a size", change("input_size", [SIZE]), "input_size must have 2 values"),
    ("half a layer", change("layers.0", ["conv"]), r"layers\[0\] must have 4 values"),
    ("an unknown precision", change("precision", "int3"), "precision must be one of"),
    ("an unknown method", change("graphs.0.key.method", "x"), "method must be one of"),
    ("no graphs", change("graphs", []), "graphs must not be empty"),
    ("no classes in a request", change("max_targets", 0), "max_targets must be positive"),
    ("a size of 0", change("input_size", [0, SIZE]), "input_size must be positive"),
    ("a default layer that is none", change("default_layer", "x"), "default_layer must be"),
    ("a layer that is none", change("graphs.0.key.layers", ["x"]), "must be explainable layers"),
    ("no costs", change("graphs.0.cost_s", {}), "positive batch sizes"),
    ("a batch of none", change("graphs.0.cost_s", {"0": 1.0}), "positive batch sizes"),
    ("a batch of half", change("graphs.0.cost_s", {"0.5": 1.0}), "must be whole numbers"),
    ("a cost of 0", change("graphs.0.cost_s", {"1": 0}), "positive seconds"),
    ("a cost of NaN", change("graphs.0.cost_s", {"1": float("nan")}), "positive seconds"),
    ("a cost too large", change("graphs.0.cost_s", {"1": 10**400}), "too large"),
    ("a graph of ONNX", change("graphs.0.file", "graph_0.onnx"), "file must end in .xml"),
    (
        "hashes that are none",
        change("sha256", {"graph_0.bin": "0", "graph_0.xml": "0"}),
        "64 hexadecimal digits",
    ),
]

GRAPHS: list[tuple[str, Break, str]] = [
    ("another input size", change("input_size", [2 * SIZE, SIZE]), r"images is .*\[.*16,8,3\]"),
    ("more classes", change("labels", [["a"]] * 7), r"logits is .*should be .*7\]"),
    ("fewer classes", change("labels", [["a"]] * 5), r"logits is .*should be .*5\]"),
    ("fewer targets", change("graphs.0.key.max_targets", 4), r"classes is .*should be .*4\]"),
    ("perturbed images", change("graphs.0.key.perturbed", True), "images is u8.*should be f32"),
    ("another order", change("graphs.0.outputs.0", "scores"), "outputs must be logits"),
    ("no graph", put_hashed("graph_0.xml", b'<?xml version="1.0"?><net/>'), "cannot be read"),
    ("no weights", put_hashed("graph_0.bin", b""), "cannot be read"),
]


def cases(*tables: list[tuple[str, Break, str]]) -> list[Any]:
    return [pytest.param(*rest, id=name) for table in tables for name, *rest in table]


def test_the_whole_export_is_loaded(folder: Path) -> None:
    """The folder may be a link, and hold links to files of its own, as mounted volumes do."""
    (folder / "data").mkdir()
    (folder / "graph_0.bin").rename(folder / "data" / "weights")
    (folder / "graph_0.bin").symlink_to("data/weights")
    (folder.parent / "link").symlink_to(folder)
    assert list(start(folder.parent / "link").warm)


def test_an_older_export_has_no_sizes(folder: Path) -> None:
    """The hashes alone are compared."""
    remove("sizes")(folder)
    assert read_manifest(folder).sizes is None
    start(folder)
    (folder / "graph_0.bin").write_bytes(b"")
    with pytest.raises(StartupError, match="SHA-256 differs"):
        start(folder)


@pytest.mark.parametrize(("break_it", "text"), cases(FILES, MANIFESTS, GRAPHS))
def test_what_is_not_as_it_was_written_is_refused(folder: Path, break_it: Break, text: str) -> None:
    """The error has the reason; no graph is compiled, and no read blocks."""
    break_it(folder)
    with pytest.raises(StartupError, match=text):
        Engine(settings(folder))


def _add_other(name: str, content: bytes) -> Break:
    """Adds a file that no graph needs to the export, and then changes its content."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(b"")
        put_hashed(name, b"as it was written")(folder)
        (folder / name).write_bytes(content)

    return apply


@pytest.mark.parametrize(
    ("break_it", "text"),
    cases(
        [
            ("another content", _add_other("other", b"as it was WRITTEN"), "SHA-256 differs"),
            ("cut off", _add_other("other", b"as it was"), "it has 9 bytes, not 17"),
            ("nothing", _add_other("variables", b""), "it has 0 bytes, not 17"),
        ]
    ),
)
def test_a_file_that_no_graph_needs_is_checked_too(
    folder: Path, break_it: Break, text: str
) -> None:
    """A server does not start with a damaged folder, although it would not read that file."""
    break_it(folder)
    with pytest.raises(StartupError, match=text):
        start(folder)


@pytest.mark.parametrize(("break_it", "text"), cases(FILES[:1], MANIFESTS[:1], GRAPHS[:2]))
def test_a_check_refuses_what_serving_refuses(
    folder: Path, break_it: Break, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``gradcam serve --check`` loads exports as serving does."""
    monkeypatch.setattr("gradcam_server.telemetry.logs.configure", lambda *_: None)
    break_it(folder)
    result = CliRunner().invoke(main, ["serve", "--check", "--model", f"tiny={folder}"])
    assert result.exit_code == 1
    assert re.search(text, result.output)


def test_graphs_are_those_that_were_checked(folder: Path) -> None:
    """A folder that is replaced after the start has no effect on a graph's first use."""
    engine = Engine(settings(folder))
    for path in folder.iterdir():
        path.rename(folder.parent / path.name)
        path.write_bytes(b"another one")
    engine.warm_up()


def _field(number: int, content: bytes | int) -> bytes:
    """Returns a field of a protobuf, shorter than 128 bytes."""
    if isinstance(content, int):
        return bytes((number << 3, content))
    return bytes((number << 3 | 2, len(content))) + content


def onnx_with_external_weights() -> bytes:
    """Returns a model of x + w, four numbers each; w is in the file "secret" beside it."""

    def value(name: bytes) -> bytes:
        shape = _field(1, _field(1, 4))
        return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, shape)))

    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, b"Add")
    place = _field(1, b"location") + _field(2, b"secret")
    weights = _field(1, 4) + _field(2, 1) + _field(8, b"w") + _field(13, place) + _field(14, 1)
    graph = _field(1, node) + _field(2, b"g") + _field(5, weights)
    graph += _field(11, value(b"x")) + _field(12, value(b"y"))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13))


def test_a_graph_opens_no_further_files(folder: Path) -> None:
    """Models of other formats, which may name files to open, are refused whatever their names."""
    onnx = onnx_with_external_weights()
    (folder / "secret").write_bytes(bytes(16))
    put_hashed("graph_0.xml", onnx)(folder)
    with pytest.raises(StartupError, match="is not XML"):
        start(folder)
    with pytest.raises(ValueError, match="is not XML"):
        read_model(folder / "graph_0.xml", folder / "graph_0.bin")
