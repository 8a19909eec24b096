"""Descriptors handed from one process of the server to another."""

import os
import socket
from pathlib import Path

import pytest

from gradcam_server.engine.ipc.fd_passing import hand_over, make_door, take_over


def test_what_is_handed_over_first_is_taken_first() -> None:
    """Each hand-over is taken whole and in order, and what is read comes from what was given."""
    ours, theirs = make_door()
    ends = [os.pipe() for _ in range(3)]
    with ours, theirs:
        hand_over(ours, ends[0][0], ends[1][0])
        hand_over(ours, ends[2][0])
        taken = [*take_over(theirs, 2), *take_over(theirs, 1)]
    for number, (read, write) in enumerate(ends):
        os.write(write, b"%d" % number)
        assert os.read(taken[number], 1) == b"%d" % number
        for one in (read, write, taken[number]):
            os.close(one)


def test_fewer_than_were_announced_are_an_error_and_closed() -> None:
    """A hand-over that is not what the message said leaves no descriptor behind."""
    ours, theirs = make_door()
    with ours, theirs, socket.socket() as given:
        hand_over(ours, given.fileno())
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(OSError, match="1 descriptors were handed over; 2 were announced"):
            take_over(theirs, 2)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
