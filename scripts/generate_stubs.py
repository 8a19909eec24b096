"""Generates the gRPC stubs from the proto files, or checks that they are current.

Usage: python scripts/generate_stubs.py [--check]
"""

import argparse
import difflib
import importlib.resources
import sys
import tempfile
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
# Other packages, such as tritonclient, register the same names (inference.ModelInferRequest), and
# the default pool holds one message of a name: these stubs use pools of their own.
PRIVATE_POOLS = ("gradcam/inference/grpc_service_pb2.py",)


def generate(destination: Path) -> None:
    """Writes the stubs of every proto file below ``proto/`` to ``destination``."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    google_rpc = Path(status_pb2.__file__).parents[2]
    sources = sorted(str(path) for path in PROTO_ROOT.rglob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--proto_path={well_known}",
            f"--proto_path={google_rpc}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            f"--grpc_python_out={destination}",
            *sources,
        ]
    )
    if status != 0:
        sys.exit(status)
    for name in PRIVATE_POOLS:
        stub = destination / name
        code = stub.read_text()
        assert code.count("_descriptor_pool.Default()") == 1, name
        private = code.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
        stub.write_text(private)


def stale(fresh: Path) -> list[str]:
    """Returns a diff for each committed stub that differs from ``fresh``."""
    names = {
        path.relative_to(root)
        for root in (fresh, PROTO_ROOT)
        for suffix in SUFFIXES
        for path in root.rglob(f"*{suffix}")
    }
    diffs = []
    for name in sorted(names):
        committed, generated = PROTO_ROOT / name, fresh / name
        old = committed.read_text().splitlines() if committed.exists() else []
        new = generated.read_text().splitlines() if generated.exists() else []
        if old != new:
            diff = difflib.unified_diff(old, new, f"committed/{name}", f"generated/{name}", n=1)
            diffs.append("\n".join(list(diff)[:20]))
    return diffs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, and fail if stale")
    if not parser.parse_args().check:
        generate(PROTO_ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        diffs = stale(Path(folder))
    if diffs:
        sys.exit("\n".join([*diffs, "The stubs differ from proto/. Run: make stubs"]))


if __name__ == "__main__":
    main()
