"""The devices, GPU memory and threads of TensorFlow, which are set before its first use."""

import logging
from collections.abc import Sequence

import tensorflow as tf

from gradcam_server.errors import StartupError
from gradcam_server.graphs.threads import compute_threads

logger = logging.getLogger(__name__)


def set_up_devices(devices: Sequence[str], memory_limit_mib: int | None) -> tuple[str, ...]:
    """Sets up TensorFlow. The first call of a process decides; TensorFlow allows no other.

    Args:
        devices: The devices to use, such as "GPU:0"; empty for all GPUs, or else the CPU.
        memory_limit_mib: Most memory to take on each GPU; None takes it as needed.

    Returns:
        The names of the devices.

    Raises:
        StartupError: There is no such device.
    """
    try:
        _configure(devices, memory_limit_mib)
    except RuntimeError as error:  # TensorFlow is in use already
        logger.debug("Devices stay as they are: %s", error)
    found = {
        device.name.removeprefix("/device:")
        for device in tf.config.list_logical_devices()
        if device.device_type in {"CPU", "GPU"}
    }
    wanted = tuple(devices) or tuple(sorted(name for name in found if name.startswith("GPU")))
    for device in wanted:
        if device not in found:
            raise StartupError(
                f"--device {device}: there is no such device here; there is: "
                f"{', '.join(sorted(found))}"
            )
    return wanted or ("CPU:0",)


def _configure(devices: Sequence[str], memory_limit_mib: int | None) -> None:
    threads = tf.config.threading
    if threads.get_intra_op_parallelism_threads() != compute_threads():
        threads.set_intra_op_parallelism_threads(compute_threads())
    for gpu in tf.config.list_physical_devices("GPU"):
        if memory_limit_mib:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=memory_limit_mib)
            tf.config.set_logical_device_configuration(gpu, [limit])
        else:
            tf.config.experimental.set_memory_growth(gpu, True)
    if (count := _cpu_count(devices)) > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        tf.config.set_logical_device_configuration(cpu, parts)


def _cpu_count(devices: Sequence[str]) -> int:
    """Returns the number of logical devices into which the CPU must be split."""
    numbers = [name.removeprefix("CPU:") for name in devices if name.startswith("CPU:")]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=1)
