"""The ring of images that the front end and the engine share."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.engine.ipc.shared_ring import (
    SLOTS,
    Pixels,
    RingReader,
    RingWriter,
    Slot,
    create_shared_memory,
)

SHAPE = (4, 5, 3)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


@dataclass
class Ends:
    """Both ends, and the messages between them."""

    writer: RingWriter
    reader: RingReader


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = open_ends()
    yield both
    both.writer.close()


def open_ends() -> Ends:
    shared_fd = create_shared_memory()
    reader = RingReader(shared_fd, int(np.prod(SHAPE)))
    writer = RingWriter(shared_fd)
    os.close(shared_fd)
    return Ends(writer, reader)


def test_images_go_through_the_same_slots_again_and_again(ends: Ends) -> None:
    """Each arrives as it was sent; the memory is bounded, whatever number of images."""
    used = set()
    for number in range(3 * SLOTS):
        sent = ends.writer.put(number, picture(number))
        assert isinstance(sent, Slot)
        used.add(sent.index)
        taken = ends.reader.take(sent)
        ends.writer.free(number)
        np.testing.assert_array_equal(taken, picture(number))
    assert used == set(range(SLOTS))


def test_a_copy_does_not_change_with_its_slot(ends: Ends) -> None:
    """An image that the engine has taken is a copy."""
    sent = ends.writer.put(0, picture(0))
    taken = ends.reader.take(sent)
    ends.writer.free(0)
    for number in range(1, SLOTS + 1):
        ends.writer.put(number, picture(number))
    np.testing.assert_array_equal(taken, picture(0))


@pytest.mark.parametrize(
    "image",
    [picture(0).astype(np.float32), np.zeros((5, 5, 3), np.uint8)],
    ids=["float32", "too large"],
)
def test_an_image_that_fits_no_slot_goes_in_its_message(ends: Ends, image: Pixels) -> None:
    """Perturbed images, and images larger than any model's input, are sent as they are."""
    sent = ends.writer.put(0, image)
    assert sent is image
    assert ends.reader.take(sent) is image


def test_without_a_free_slot_images_go_with_their_messages(ends: Ends) -> None:
    """As soon as the engine has read an image, the next has its slot; freeing twice frees once."""
    first = [ends.writer.put(number, picture(number)) for number in range(SLOTS)]
    image = picture(SLOTS)
    assert ends.writer.put(SLOTS, image) is image
    for _ in range(2):
        ends.writer.free(0)
    assert ends.writer.put(SLOTS + 1, image) == first[0]
    assert ends.writer.put(SLOTS + 2, image) is image


@given(
    steps=st.lists(st.sampled_from(["send", "read", "report"]), max_size=400), ahead=st.booleans()
)
def test_no_slot_is_written_before_it_was_read(steps: list[str], ahead: bool) -> None:
    """However late the engine reads and reports, it reads what was sent."""
    ends, number, latest = open_ends(), 0, -1
    messages: deque[tuple[int, Pixels | Slot]] = deque()
    for step in ["send"] * (SLOTS if ahead else 0) + steps:
        if step == "send":
            messages.append((number, ends.writer.put(number, picture(number))))
            number += 1
        elif step == "read" and messages:
            latest, sent = messages.popleft()
            np.testing.assert_array_equal(ends.reader.take(sent), picture(latest))
        elif step == "report":
            ends.writer.free(latest)
    ends.writer.close()


def test_the_memory_ends_with_its_last_process() -> None:
    """It has no name that would outlive a kill -9, and another process's end does not unmap it."""
    shared_fd = create_shared_memory()
    assert str(Path(f"/proc/self/fd/{shared_fd}").readlink()).startswith("/memfd:")
    program = (
        "import signal, sys\n"
        "from gradcam_server.engine.ipc.shared_ring import RingReader\n"
        f"RingReader({shared_fd}, 60)\n"
        "print('mapped', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], pass_fds=(shared_fd,), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "mapped\n"
        child.send_signal(signal.SIGKILL)
    writer = RingWriter(shared_fd)
    os.close(shared_fd)
    assert writer.put(0, picture(0)) == Slot(0, SHAPE)
    writer.close()
