"""Sends file descriptors from one process of the server to another (SCM_RIGHTS).

They go through a socket pair of their own, beside the messages that announce them:
asyncio's streams cannot carry descriptors. Descriptors are sent before their message.
"""

import os
import socket


def fd_socket_pair() -> tuple[socket.socket, socket.socket]:
    """Returns two connected sockets for descriptors; the second is for the other process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def send_fds(fd_socket: socket.socket, *descriptors: int) -> None:
    """Sends file descriptors to the other process. They stay open here.

    Raises:
        OSError: The other process is gone, or does not receive.
    """
    socket.send_fds(fd_socket, [b"\0"], descriptors)


def receive_fds(fd_socket: socket.socket, count: int) -> list[int]:
    """Receives the descriptors of one ``send_fds``, the oldest that is not yet received.

    Args:
        fd_socket: The socket.
        count: How many a message has announced.

    Raises:
        OSError: The number that was sent differs.
    """
    _, descriptors, _, _ = socket.recv_fds(fd_socket, 1, count, socket.MSG_CMSG_CLOEXEC)
    if len(descriptors) != count:
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError(f"{len(descriptors)} descriptors were sent; {count} were announced")
    return descriptors
