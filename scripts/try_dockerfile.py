"""Runs the Dockerfile's steps without Docker: installs into an empty folder and serves.

COPY, RUN, ENV, HEALTHCHECK and CMD come from the Dockerfile itself: only the files of COPY go into
an empty folder, the install step runs there, and the installed server must pass the health check,
answer, and serve the page. Only the folder and the ports differ, and pip may use its cache and need
not compile.

Usage: python scripts/try_dockerfile.py
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples" / "images" / "cat.jpg"
PREFIX = "/opt/gradcam"
READY_TIMEOUT_S = 120


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions and their arguments."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def copy_context(steps: list[tuple[str, str]], folder: Path) -> None:
    """Copies the files that the build stage copies, and no others."""
    for name, argument in steps:
        if name == "COPY" and "--from" not in argument:
            *sources, _ = argument.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, folder / source, ignore=ignored)
                else:
                    shutil.copy(ROOT / source, folder / source)


def install(steps: list[tuple[str, str]], context: Path, prefix: Path) -> None:
    """Runs the RUN of the build stage."""
    command = next(argument for name, argument in steps if name == "RUN")
    device = next(a.split("=")[1] for n, a in steps if n == "ARG" and a.startswith("DEVICE="))
    command = command.replace(PREFIX, str(prefix)).replace(" --no-cache-dir", "")
    env = clean(DEVICE=device, PIP_NO_COMPILE="1")
    subprocess.run(["sh", "-ec", command], cwd=context, env=env, check=True)


def free_port() -> str:
    """Returns a port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def serve(steps: list[tuple[str, str]], prefix: Path, home: Path) -> None:
    """Starts ENTRYPOINT and CMD with ENV, runs HEALTHCHECK, explains a photograph, and stops."""
    given = dict(re.findall(r"(\w+)=(\S+)", " ".join(a for n, a in steps if n == "ENV")))
    port, http_port = free_port(), free_port()
    given |= {"GRADCAM_HOST": "127.0.0.1", "GRADCAM_PORT": port, "HOME": str(home)}
    given |= {"GRADCAM_HTTP_HOST": "127.0.0.1", "GRADCAM_HTTP_PORT": http_port}
    given["PATH"] = f"{prefix}/bin:{os.environ['PATH']}"
    env = clean(**given)
    lists = {name: json.loads(a) for name, a in steps if name in {"ENTRYPOINT", "CMD"}}
    health = json.loads(next(a for n, a in steps if n == "HEALTHCHECK").split(" CMD ")[1])
    server = subprocess.Popen(lists["ENTRYPOINT"] + lists["CMD"], env=env, cwd=home)
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while subprocess.run(health, env=env, cwd=home, check=False).returncode != 0:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the server did not become healthy")
            time.sleep(1)
        explain = ["gradcam", "explain", str(PHOTO), "--server", f"127.0.0.1:{port}"]
        subprocess.run(explain, env=env, cwd=home, check=True)
        for path in ("", "ui/app.js", "ui/cat.jpg"):
            with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/{path}") as answer:
                if not answer.read():
                    sys.exit(f"/{path} is empty")
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    if status:
        sys.exit(f"the server ended with status {status}")


def clean(**variables: str) -> dict[str, str]:
    """Returns this environment without the variables of another installation."""
    leaks = re.compile(r"(PYTHON|VIRTUAL_ENV|GRADCAM_)")
    return {k: v for k, v in os.environ.items() if not leaks.match(k)} | variables


def main() -> None:
    steps = instructions()
    with tempfile.TemporaryDirectory() as folder:
        context, prefix, home = (Path(folder) / name for name in ("src", "gradcam", "home"))
        context.mkdir()
        home.mkdir()
        copy_context(steps, context)
        print("Installing as the Dockerfile does ...", flush=True)
        install(steps, context, prefix)
        serve(steps, prefix, home)
    print("The Dockerfile's steps work.")


if __name__ == "__main__":
    main()
