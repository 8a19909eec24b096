"""Child processes for tests, run as ``python -m support.child``.

GRADCAM_TEST_CHILD names the function of this module that the child runs; it gets the descriptors of
any child of the server.
"""

import asyncio
import os
import pickle
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def choose(monkeypatch: "pytest.MonkeyPatch", behaviour: str) -> str:
    """Chooses the function that children run from now on; returns the module to spawn."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.setenv("GRADCAM_TEST_CHILD", behaviour)
    return __name__


def echo(control: socket.socket) -> None:
    """Echoes all data until its socket ends."""
    while data := control.recv(4096):
        control.sendall(data)


def listen(control: socket.socket) -> None:
    """Sends nothing, and ends with its socket."""
    while control.recv(1 << 20):
        pass


def write_to_second(control: socket.socket) -> None:
    """Writes into the second descriptor."""
    os.write(int(sys.argv[2]), b"inherited")
    control.recv(1)


def stay(control: socket.socket) -> None:
    """Ignores SIGTERM and the end of its socket."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control.sendall(b"!")
    time.sleep(600)


def close_and_stay(control: socket.socket) -> None:
    """Closes its socket, but does not end."""
    control.close()
    time.sleep(600)


def die(control: socket.socket) -> None:
    """Ends at once."""
    control.close()
    os._exit(3)


def die_unread(control: socket.socket) -> None:
    """Ends at once with unread data: the other end gets a broken pipe."""
    control.recv(1)
    os._exit(4)


def garbage(control: socket.socket) -> None:
    """Sends bytes that are not a message, as a library that writes into a wrong descriptor does."""
    control.sendall(b"terminate called without an active exception\n")
    control.recv(1 << 20)
    time.sleep(600)


def half_a_message(control: socket.socket) -> None:
    """Sends the beginning of a message, and ends."""
    control.sendall(b"GCAM\xff\xff\xff\x00abc")
    control.recv(1 << 20)
    os._exit(5)


def unreadable(control: socket.socket) -> None:
    """Sends a frame that holds no pickle."""
    control.sendall(b"GCAM\x03\x00\x00\x00abc")
    control.recv(1 << 20)
    time.sleep(600)


def wrong_message(control: socket.socket) -> None:
    """Sends a known message that is not the expected first one."""
    frame = pickle.dumps("hello")
    control.sendall(b"GCAM" + len(frame).to_bytes(4, "little") + frame)
    control.recv(1 << 20)
    time.sleep(600)


def engine(control: socket.socket) -> None:
    """Sends the message in GRADCAM_TEST_READY at once, as an engine; ends with its socket."""
    os.ftruncate(int(sys.argv[2]), 64 * 12)
    control.sendall(Path(os.environ["GRADCAM_TEST_READY"]).read_bytes())
    listen(control)


def front_end(control: socket.socket) -> None:
    """Answers Join and Listen as a front end does, but opens no port."""
    from gradcam_server.engine.ipc.messages import receive, send
    from gradcam_server.serving.front_ends.messages import Join, Joined, Listen, Listening

    async def answer() -> None:
        reader, writer = await asyncio.open_connection(sock=control)
        with suppress(EOFError):
            while True:
                match await receive(reader):
                    case Join() as join:
                        send(writer, Joined(join.engine))
                    case Listen():
                        send(writer, Listening())

    asyncio.run(answer())


if __name__ == "__main__":
    globals()[os.environ["GRADCAM_TEST_CHILD"]](socket.socket(fileno=int(sys.argv[1])))
