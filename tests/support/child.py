"""Children of the server that do what their name says, run as ``python -m support.child``.

GRADCAM_TEST_CHILD names what it does; the descriptors come as for any child.
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
    """Says what children do from now on: a function of this module; returns what to spawn."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.setenv("GRADCAM_TEST_CHILD", behaviour)
    return __name__


def echo(control: socket.socket) -> None:
    """Sends back what it receives, until the end."""
    while data := control.recv(4096):
        control.sendall(data)


def listen(control: socket.socket) -> None:
    """Says nothing, and ends with its socket."""
    while control.recv(1 << 20):
        pass


def write_to_second(control: socket.socket) -> None:
    """Writes into the descriptor that it was given beside the socket."""
    os.write(int(sys.argv[2]), b"inherited")
    control.recv(1)


def stay(control: socket.socket) -> None:
    """Neither speaks, nor ends when the socket does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control.sendall(b"!")
    time.sleep(600)


def close_and_stay(control: socket.socket) -> None:
    """Closes its socket, and lives on."""
    control.close()
    time.sleep(600)


def die(control: socket.socket) -> None:
    """Ends at once."""
    control.close()
    os._exit(3)


def die_unread(control: socket.socket) -> None:
    """Ends at once, with what it was told unread: the other end's pipe breaks."""
    control.recv(1)
    os._exit(4)


def garbage(control: socket.socket) -> None:
    """Sends what is no message, as a library that writes into a wrong descriptor would."""
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
    """Sends a message that is known, but not the first."""
    frame = pickle.dumps("hello")
    control.sendall(b"GCAM" + len(frame).to_bytes(4, "little") + frame)
    control.recv(1 << 20)
    time.sleep(600)


def engine(control: socket.socket) -> None:
    """Says at once, as an engine would, what GRADCAM_TEST_READY holds; ends with its socket."""
    os.ftruncate(int(sys.argv[2]), 64 * 12)
    control.sendall(Path(os.environ["GRADCAM_TEST_READY"]).read_bytes())
    listen(control)


def front_end(control: socket.socket) -> None:
    """Joins and listens when it is told to, as a front end would, but opens no port."""
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
