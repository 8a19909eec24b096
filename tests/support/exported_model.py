"""An export of the trained model: a server of it is ready in two seconds, without TensorFlow."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from support.once import made_once


@cache
def exported_model() -> Path:
    """Returns the folder of the export."""
    return made_once("efficientnet-lite0", _export)


def _export(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("gradcam")), "export"]
    options = ["--model", "efficientnet-lite0", "--batch-sizes", "1,4", "-o", str(folder)]
    done = subprocess.run(
        [*command, *options, "--warm", "layercam", "--warm", "hirescam"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
