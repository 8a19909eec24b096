"""Demonstrates the server: starts it, explains one photograph over gRPC, and writes out.jpg."""

import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRADCAM = str(Path(sys.executable).with_name("gradcam"))
PHOTO = "examples/images/cat.jpg"


def main() -> int:
    print("Starting the server (embedded model, a free port) ...", flush=True)
    command = [GRADCAM, "serve", "--model", "efficientnet-lite0", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr
    log, address = [], None
    try:
        for line in server.stderr:
            log.append(line)
            if listening := re.search(r"Listening on (\S+:\d+)", line):
                address = listening[1]
            if "Serving" in line:
                break
        else:
            print("".join(log), file=sys.stderr)
            return server.wait() or 1
        assert address
        print(f"Explaining {PHOTO} on {address}:\n", flush=True)
        explain = [GRADCAM, "explain", PHOTO, "--server", address]
        client = subprocess.run([*explain, "-o", "out.jpg"], cwd=ROOT, check=False)
    finally:
        server.send_signal(signal.SIGTERM)
        log += server.communicate()[1].splitlines(keepends=True)
    if client.returncode or server.returncode:
        print("".join(log), file=sys.stderr)
        return client.returncode or server.returncode
    print("\nThe server has stopped. Red is where the model looked: open out.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
