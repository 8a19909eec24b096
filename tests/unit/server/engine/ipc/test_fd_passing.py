"""File descriptors sent from one process of the server to another."""

import os
import socket
from pathlib import Path

import pytest

from gradcam_server.engine.ipc.fd_passing import fd_socket_pair, receive_fds, send_fds


def test_descriptors_arrive_in_order() -> None:
    """Each sending is received whole and in order, and the descriptors are of the same pipes."""
    ours, theirs = fd_socket_pair()
    ends = [os.pipe() for _ in range(3)]
    with ours, theirs:
        send_fds(ours, ends[0][0], ends[1][0])
        send_fds(ours, ends[2][0])
        taken = [*receive_fds(theirs, 2), *receive_fds(theirs, 1)]
    for number, (read, write) in enumerate(ends):
        os.write(write, b"%d" % number)
        assert os.read(taken[number], 1) == b"%d" % number
        for descriptor in (read, write, taken[number]):
            os.close(descriptor)


def test_fewer_than_were_announced_are_an_error_and_closed() -> None:
    """A sending that is not what the message said leaves no descriptor behind."""
    ours, theirs = fd_socket_pair()
    with ours, theirs, socket.socket() as given:
        send_fds(ours, given.fileno())
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(OSError, match="1 descriptors were sent; 2 were announced"):
            receive_fds(theirs, 2)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
