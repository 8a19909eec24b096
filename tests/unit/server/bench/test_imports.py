"""The benchmarks' process does not load the measured libraries."""

import subprocess
import sys


def test_no_module_of_the_benchmarks_imports_tensorflow() -> None:
    """Only subjects import it, in processes of their own."""
    code = """
import pkgutil, sys
from importlib import import_module
import gradcam_server.bench as bench
for module in pkgutil.iter_modules(bench.__path__):
    import_module(f"{bench.__name__}.{module.name}")
print("tensorflow" in sys.modules, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
