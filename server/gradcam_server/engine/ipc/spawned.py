"""An engine's process that is not warm yet. Importing this module imports no NumPy.

So a server can start its engine first, and both processes import their packages side by side.
"""

import os
import socket
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Self

from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.ipc.child_process import ChildProcess
from gradcam_server.engine.ipc.fd_passing import fd_socket_pair
from gradcam_server.engine.ipc.shared_memory import create_shared_memory

_MODULE = "gradcam_server.engine.ipc.main"


class SpawnedEngine:
    """The process of an engine, and this process's ends of what they share. ``spawn`` makes one.

    Attributes:
        child: The process.
        shared_fd: File descriptor of the shared memory.
        fd_socket: Sends file descriptors to the process.
        began: When it was started, by ``perf_counter``.
    """

    def __init__(
        self, child: ChildProcess, shared_fd: int, fd_socket: socket.socket, began: float
    ) -> None:
        self.child, self.shared_fd, self.fd_socket = child, shared_fd, fd_socket
        self.began = began
        self._is_taken = False

    @classmethod
    async def spawn(cls, config: ServeConfig) -> Self:
        """Starts the process and sends it the settings; does not wait for it.

        If this fails or is cancelled, no process or descriptor is left.

        Raises:
            OSError: There is no descriptor, process or memory left.
        """
        began = perf_counter()
        async with AsyncExitStack() as on_failure:
            shared_fd = create_shared_memory()
            on_failure.callback(os.close, shared_fd)
            fd_socket, their_fd_socket = fd_socket_pair()
            on_failure.enter_context(fd_socket)
            with their_fd_socket:
                child = await ChildProcess.spawn(_MODULE, shared_fd, their_fd_socket.fileno())
            on_failure.push_async_callback(child.close, 0)
            # These modules import NumPy; the process is running by now.
            from gradcam_server.engine.ipc.messages import Start, send

            send(child.writer, Start(config))
            on_failure.pop_all()
            return cls(child, shared_fd, fd_socket, began)

    def take(self) -> None:
        """Hands the process over: from now on ``close`` leaves it alone."""
        self._is_taken = True

    async def close(self) -> None:
        """Kills the process and closes what was shared, unless ``take`` was called."""
        if self._is_taken:
            return
        self._is_taken = True
        os.close(self.shared_fd)
        self.fd_socket.close()
        await self.child.close(0)
