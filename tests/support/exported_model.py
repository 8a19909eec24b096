"""An export of the trained model: a server of it is ready in two seconds, without TensorFlow."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock

RUN_FOLDER = "GRADCAM_TEST_RUN"
"""Environment variable: the folder that all processes of one test run share."""


@cache
def exported_model() -> Path:
    """Returns the folder of the export. The first process of a run that asks makes it."""
    folder = Path(os.environ[RUN_FOLDER]) / "efficientnet-lite0"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            command = [str(Path(sys.executable).with_name("gradcam")), "export"]
            options = ["--model", "efficientnet-lite0", "--batch-sizes", "1,4", "-o", str(folder)]
            done = subprocess.run(
                [*command, *options, "--warm", "layercam", "--warm", "hirescam"],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
    return folder
