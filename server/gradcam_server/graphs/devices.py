"""The devices on which TensorFlow computes, their memory and threads: set before the first use."""

import logging
from collections.abc import Sequence

import tensorflow as tf

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.graphs.threads import compute_threads

logger = logging.getLogger(__name__)


def set_up_devices(config: ServeConfig) -> tuple[str, ...]:
    """Prepares TensorFlow. The first call of a process decides; TensorFlow allows no other.

    Returns:
        Names of the devices, such as "GPU:0".

    Raises:
        StartupError: There is no such device.
    """
    try:
        _configure(config)
    except RuntimeError as error:  # it is in use already
        logger.debug("Devices stay as they are: %s", error)
    found = {
        device.name.removeprefix("/device:")
        for device in tf.config.list_logical_devices()
        if device.device_type in {"CPU", "GPU"}
    }
    wanted = config.device or tuple(sorted(one for one in found if one.startswith("GPU")))
    for device in wanted:
        if device not in found:
            raise StartupError(
                f"--device {device}: there is no such device here; there is: "
                f"{', '.join(sorted(found))}"
            )
    return wanted or ("CPU:0",)


def _configure(config: ServeConfig) -> None:
    threads = tf.config.threading
    if threads.get_intra_op_parallelism_threads() != compute_threads():
        threads.set_intra_op_parallelism_threads(compute_threads())
    for gpu in tf.config.list_physical_devices("GPU"):
        if config.device_memory_mib:
            limit = tf.config.LogicalDeviceConfiguration(memory_limit=config.device_memory_mib)
            tf.config.set_logical_device_configuration(gpu, [limit])
        else:
            tf.config.experimental.set_memory_growth(gpu, True)
    if (count := _cpus(config.device)) > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        tf.config.set_logical_device_configuration(cpu, parts)


def _cpus(devices: Sequence[str]) -> int:
    """Returns into how many logical devices the CPU must be split."""
    numbers = [name.removeprefix("CPU:") for name in devices if name.startswith("CPU:")]
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=1)
