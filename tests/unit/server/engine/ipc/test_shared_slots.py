"""The memory that the front end and the engine share."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.engine.ipc.shared_memory import create_shared_memory
from gradcam_server.engine.ipc.shared_slots import SLOTS, Pixels, Slot, SlotReader, SlotWriter

SHAPE = (4, 5, 3)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


@dataclass
class Ends:
    """Both ends, and the messages between them."""

    writer: SlotWriter
    reader: SlotReader


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = open_ends()
    yield both
    both.writer.close()


def open_ends() -> Ends:
    shared_fd = create_shared_memory()
    reader = SlotReader(shared_fd, int(np.prod(SHAPE)))
    writer = SlotWriter(shared_fd)
    os.close(shared_fd)
    return Ends(writer, reader)


def test_images_go_through_the_same_slots_again_and_again(ends: Ends) -> None:
    """Each arrives as it was sent; a few images in work touch as few slots."""
    used = set()
    for number in range(0, 3 * SLOTS, 2):
        pair = number, number + 1
        sent = [ends.writer.put(picture(one)) for one in pair]
        for one, slot in zip(pair, sent, strict=True):
            assert isinstance(slot, Slot)
            used.add(slot.number)
            np.testing.assert_array_equal(ends.reader.view(slot), picture(one))
            ends.writer.free(slot)
    assert used == {0, 1}


def test_the_engine_reads_the_slot_itself_and_cannot_write_it(ends: Ends) -> None:
    """An image is not copied before the array of its batch is filled."""
    sent = ends.writer.put(picture(0))
    assert isinstance(sent, Slot)
    view = ends.reader.view(sent)
    ends.writer.free(sent)
    assert ends.writer.put(picture(1)) == sent
    np.testing.assert_array_equal(view, picture(1))
    with pytest.raises(ValueError, match="read-only"):
        view[...] = 0


def test_views_outlive_the_end_of_their_connection(ends: Ends) -> None:
    """A batch that runs while its front end leaves reads what was sent."""
    view = ends.reader.view(ends.writer.put(picture(0)))
    ends.reader.close()
    np.testing.assert_array_equal(view, picture(0))


@pytest.mark.parametrize(
    "image",
    [picture(0).astype(np.float32), np.zeros((5, 5, 3), np.uint8)],
    ids=["float32", "too large"],
)
def test_an_image_that_fits_no_slot_goes_in_its_message(ends: Ends, image: Pixels) -> None:
    """Perturbed images, and images larger than any model's input, are sent as they are."""
    sent = ends.writer.put(image)
    assert sent is image
    assert ends.reader.view(sent) is image


def test_without_a_free_slot_images_go_with_their_messages(ends: Ends) -> None:
    """As soon as any image has ended, the next has its slot."""
    sent = [ends.writer.put(picture(number)) for number in range(SLOTS)]
    image = picture(SLOTS)
    assert ends.writer.put(image) is image
    freed = sent[SLOTS // 2]
    assert isinstance(freed, Slot)
    ends.writer.free(freed)
    assert ends.writer.put(image) == freed
    assert ends.writer.put(image) is image


@given(
    steps=st.lists(st.one_of(st.just(-1), st.integers(0, 300)), max_size=400), ahead=st.booleans()
)
def test_no_slot_is_written_before_its_image_has_ended(steps: list[int], ahead: bool) -> None:
    """In whatever order images end, each is until then as it was sent."""
    ends, number = open_ends(), 0
    in_work: list[tuple[int, Pixels | Slot]] = []
    for step in [-1] * (SLOTS if ahead else 0) + steps:
        if step < 0:
            in_work.append((number, ends.writer.put(picture(number))))
            number += 1
        elif in_work:
            sent_number, sent = in_work.pop(step % len(in_work))
            np.testing.assert_array_equal(ends.reader.view(sent), picture(sent_number))
            if isinstance(sent, Slot):
                ends.writer.free(sent)
    ends.writer.close()


def test_the_memory_ends_with_its_last_process() -> None:
    """It has no name that would outlive a kill -9, and another process's end does not unmap it."""
    shared_fd = create_shared_memory()
    assert str(Path(f"/proc/self/fd/{shared_fd}").readlink()).startswith("/memfd:")
    program = (
        "import signal, sys\n"
        "from gradcam_server.engine.ipc.shared_slots import SlotReader\n"
        f"SlotReader({shared_fd}, 60)\n"
        "print('mapped', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], pass_fds=(shared_fd,), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "mapped\n"
        child.send_signal(signal.SIGKILL)
    writer = SlotWriter(shared_fd)
    os.close(shared_fd)
    assert writer.put(picture(0)) == Slot(0, SHAPE)
    writer.close()
