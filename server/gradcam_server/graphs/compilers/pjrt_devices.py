"""The devices, threads, GPU memory and compilation cache of JAX, set before its first use."""

import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from gradcam_server.errors import StartupError
from gradcam_server.graphs.threads import compute_threads

logger = logging.getLogger(__name__)

_MIB = 1 << 20
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")


def set_up_devices(
    devices: Sequence[str] = (), memory_limit_mib: int | None = None, cache: Path | None = None
) -> list[Any]:
    """Sets up JAX. The first call of a process decides on all but the choice of devices.

    Args:
        devices: The devices to use, such as "GPU:0"; empty for all GPUs, or else one CPU.
        memory_limit_mib: Most memory to take on each GPU; None takes it as needed.
        cache: Folder that keeps what XLA compiled; None keeps nothing.

    Returns:
        The devices, as ``jax.Device``.

    Raises:
        StartupError: There is no such device, or the limit cannot be set.
    """
    try:
        _configure(devices, memory_limit_mib, cache)
    except RuntimeError as error:  # JAX is in use already
        logger.debug("JAX stays as it is: %s", error)
    found = {device_name(device): device for device in _all_devices()}
    wanted = list(devices) or [name for name in found if name.startswith("GPU")] or ["CPU:0"]
    for name in wanted:
        if name not in found:
            raise StartupError(
                f"--device {name}: JAX has no such device here; it has: {', '.join(sorted(found))}"
            )
    return [found[name] for name in wanted]


def _configure(devices: Sequence[str], memory_limit_mib: int | None, cache: Path | None) -> None:
    # It tells of each kind of device that there is none.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    cpus = [int(name[4:]) for name in devices if name.startswith("CPU:") and name[4:].isdecimal()]
    jax.config.update("jax_num_cpu_devices", max(cpus, default=0) + 1)
    # XLA reads the number of its threads on CPUs from here.
    os.environ["NPROC"] = str(compute_threads())
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if memory_limit_mib and (share := _memory_share(memory_limit_mib)):
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.4f}"
    if cache is not None:
        # The path is a part of the keys in it.
        jax.config.update("jax_compilation_cache_dir", str(cache.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _all_devices() -> list[Any]:
    try:
        gpus = jax.devices("gpu")
    except RuntimeError:  # there is none
        gpus = []
    return [*gpus, *jax.devices("cpu")]


def device_name(device: Any) -> str:
    """Returns the name of a ``jax.Device``, such as "GPU:0"."""
    return f"{'CPU' if device.platform == 'cpu' else 'GPU'}:{device.id}"


def _memory_share(limit_mib: int) -> float | None:
    """Returns the limit as a share of the memory of the smallest GPU; None without a GPU.

    Raises:
        StartupError: There is a GPU, and its memory cannot be found.
    """
    try:
        run = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    except FileNotFoundError:
        return None
    except (OSError, subprocess.SubprocessError) as error:
        raise StartupError(
            f"--device-memory-mib: nvidia-smi does not tell the memory of the GPUs ({error}); "
            "start without the limit"
        ) from error
    return min(1.0, limit_mib / parse_memory_mib(run.stdout))


def parse_memory_mib(lines: str) -> int:
    """Returns the memory of the smallest GPU, in MiB, from the lines of nvidia-smi.

    Raises:
        StartupError: There are no such lines.
    """
    try:
        return min(int(line) for line in lines.split())
    except ValueError as error:
        raise StartupError(
            f"--device-memory-mib: nvidia-smi wrote {lines!r:.80}, not the memory of the GPUs in "
            "MiB; start without the limit"
        ) from error
