"""The built wheel in fresh environments: an install without extras, and its requirements."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from support.server import RunningServer

ROOT = Path(__file__).resolve().parents[2]
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install")


def run(*command: str | Path, status: int = 0) -> str:
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd="/"
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel and no extras."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", *PIP, "-c", ROOT / "constraints.txt", wheel)
    return folder / "bin"


@pytest.mark.timeout(600)
def test_the_client_needs_neither_tensorflow_nor_opencv(
    plain: Path, server: RunningServer, images: Path, tmp_path: Path
) -> None:
    """``pip install gradcam-server`` alone explains images on a server."""
    for package in ("tensorflow", "cv2", "PIL", "keras"):
        missing = run(plain / "python", "-c", f"import {package}", status=1)
        assert "ModuleNotFoundError" in missing
    run(plain / "python", "-c", "import gradcam_client, gradcam.v1.explanation_service_pb2_grpc")
    out = tmp_path / "out.jpg"
    explain = (plain / "gradcam", "explain", images / "cat.jpg", "--server", server.address)
    assert "Egyptian cat" in run(*explain, "-o", out)
    assert out.read_bytes().startswith(b"\xff\xd8")
    assert "SERVING" in run(plain / "gradcam", "health", server.address)
    assert "top_activation" in run(plain / "gradcam", "layers", "--server", server.address)


@pytest.mark.timeout(600)
def test_what_needs_the_server_says_how_to_get_it(plain: Path, images: Path) -> None:
    """Without TensorFlow the error names the extra, without a traceback."""
    for command in (("serve",), ("layers",), ("explain", images / "cat.jpg")):
        message = run(plain / "gradcam", *command, status=1)
        assert "pip install 'gradcam-server[cpu]'" in message
        assert "Traceback" not in message


@pytest.mark.timeout(600)
def test_stubs_import_under_the_oldest_protobuf(tmp_path: Path) -> None:
    """Generated code refuses an older runtime: 6.31.1 is the oldest that TensorFlow accepts."""
    oldest = ("protobuf==6.31.1", "grpcio==1.74.0", "googleapis-common-protos==1.70.0")
    run(sys.executable, *PIP, "--target", tmp_path, *oldest)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT / 'proto')!r}]\n"
        "import google.protobuf, grpc\n"
        "from gradcam.v1 import explanation_service_pb2 as pb, explanation_service_pb2_grpc\n"
        "from gradcam.inference import grpc_service_pb2_grpc\n"
        "request = pb.ExplainImageRequest(encoded_image=b'x')\n"
        "assert pb.ExplainImageRequest.FromString(request.SerializeToString()) == request\n"
        "print(google.protobuf.__version__, grpc.__version__)\n"
    )
    assert run(sys.executable, "-S", "-c", code).split() == ["6.31.1", "1.74.0"]
