"""A short run of the fuzzer with fixed seeds, and the findings of long runs."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fuzz.entry_points import EntryPoint, Services, entry_points

INPUTS = 150
REGRESSIONS = Path(__file__).parent / "regressions"
ENTRY_POINTS = entry_points(Services())


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=lambda one: one.name)
def test_no_input_is_a_fault_of_the_server(entry_point: EntryPoint) -> None:
    """Every input is answered, or refused with a code that blames the caller."""
    found: Counter[str] = Counter()
    seeds = entry_point.seeds()
    for number in range(INPUTS):
        rng = random.Random(number)
        data = entry_point.mutate(rng.choice(seeds), rng)
        try:
            found[entry_point.check(data)] += 1
        except Exception as error:
            raise AssertionError(f"input {number}: {data[:200]!r}") from error
    assert found["OK"]
    print(f"{entry_point.name}: {INPUTS} inputs: {dict(found)}")


@pytest.mark.parametrize("entry_point", ENTRY_POINTS, ids=lambda one: one.name)
def test_findings_stay_repaired(entry_point: EntryPoint) -> None:
    """Inputs that once broke something: tests/fuzz/regressions/ENTRY_POINT/."""
    for path in sorted((REGRESSIONS / entry_point.name).glob("*")):
        entry_point.check(path.read_bytes())


def test_no_file_costs_more_memory_than_its_pixels() -> None:
    """An 804-byte PNG once had OpenCV take 4 GiB, which one of its chunks declared."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from gradcam_server.images.decode import decode_image\n"
        "from gradcam_server.errors import InvalidRequestError\n"
        "peak_kib = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak_kib()\n"
        "for path in sys.argv[1:]:\n"
        "    try: decode_image(Path(path).read_bytes(), 200_000)\n"
        "    except InvalidRequestError: pass\n"
        "print(peak_kib() - before)"
    )
    files = [str(path) for path in (REGRESSIONS / "image").iterdir()]
    done = subprocess.run([sys.executable, "-c", code, *files], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) < 64 * 1024
