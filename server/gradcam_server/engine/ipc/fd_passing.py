"""Descriptors of connections and memories, handed from one process of the server to another.

They go through a socket pair of their own, beside the messages that say what they are for:
asyncio's streams cannot carry them. What is announced by a message is already there.
"""

import os
import socket


def make_door() -> tuple[socket.socket, socket.socket]:
    """Returns both ends of a door; one is for the other process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def hand_over(door: socket.socket, *descriptors: int) -> None:
    """Gives the other process descriptors of its own for what ours stand for.

    Raises:
        OSError: It is gone, or takes nothing out of its door.
    """
    socket.send_fds(door, [b"\0"], descriptors)


def take_over(door: socket.socket, count: int) -> list[int]:
    """Takes the descriptors that were handed over first, which a message has announced.

    Raises:
        OSError: There are not so many.
    """
    _, descriptors, _, _ = socket.recv_fds(door, 1, count, socket.MSG_CMSG_CLOEXEC)
    if len(descriptors) != count:
        for one in descriptors:
            os.close(one)
        raise OSError(f"{len(descriptors)} descriptors were handed over; {count} were announced")
    return descriptors
