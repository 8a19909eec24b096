"""Other servers with the same graph: PYTHONPATH=benchmarks python -m peers.X.

Each takes ``--port``, ``--delay-ms`` (how long a batch waits to fill) and, after ``--``, the
options of ``gradcam serve`` for model, compiler and batch sizes.
"""
