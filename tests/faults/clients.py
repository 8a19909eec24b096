"""Clients that send requests in every way, patient or not, and check each answer.

    python -m faults.clients ADDRESS CASES_FILE SEED

is a client that sends requests until it is killed. It writes BEGUN and then the outcome of each
request to its output.
"""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc

from faults.cases import Case, load
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc

Report = Callable[[str], None]
"""Called with BEGUN before a request is sent, and later with its outcome."""

BEGUN = "begun"
RIGHT = "right"
WRONG = "WRONG"
_PATIENT_S = 120.0
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class Client:
    """Sends random cases in random ways.

    Args:
        address: The server.
        cases: The cases to send.
        seed: The seed of all random choices.
        report: Called twice for each request.
    """

    def __init__(self, address: str, cases: Sequence[Case], seed: int, report: Report) -> None:
        # Each client has its own connection, which ends with the client.
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.insecure_channel(address, options)
        self._stub = pb_grpc.ExplanationServiceStub(self._channel)
        self._random = random.Random(seed)
        self._cases = cases
        self._report = report

    def run(self, go_on: Callable[[], bool]) -> None:
        """Sends requests while ``go_on`` returns true."""
        ways = (self._wait, self._wait, self._cancel, self._time_out, self._stream, self._break_off)
        with self._channel:
            while go_on():
                self._random.choice(ways)()

    def _wait(self) -> None:
        self._send("waited", _PATIENT_S)

    def _time_out(self) -> None:
        # Refused at once if the work before it takes longer than its deadline.
        gave_up = ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        self._send("timed out", self._random.expovariate(1 / 0.05) + 1e-3, gave_up)

    def _cancel(self) -> None:
        self._send("cancelled", _PATIENT_S, ("CANCELLED",), self._random.expovariate(1 / 0.05))

    def _send(
        self,
        way: str,
        timeout_s: float,
        gave_up: Sequence[str] = (),
        cancel_in_s: float | None = None,
    ) -> None:
        case = self._random.choice(self._cases)
        self._report(BEGUN)
        call = self._stub.ExplainImage.future(case.request, timeout=timeout_s)
        if cancel_in_s is not None:
            time.sleep(cancel_in_s)
            call.cancel()
        try:
            response = call.result()
        except grpc.FutureCancelledError:
            code = "CANCELLED"
        except grpc.RpcError as error:
            code = error.code().name
        else:
            self._judge(case, "OK", response)
            return
        if code in gave_up:
            self._report(way)
        else:
            self._judge(case, code, None)

    def _stream(self) -> None:
        self._send_stream(answers_before_end=None)

    def _break_off(self) -> None:
        self._send_stream(answers_before_end=self._random.randrange(6))

    def _send_stream(self, answers_before_end: int | None) -> None:
        waiting = {
            str(number): self._random.choice(self._cases)
            for number in range(self._random.randint(1, 24))
        }

        def messages() -> Iterator[pb.StreamExplainImagesRequest]:
            for key, case in list(waiting.items()):
                yield pb.StreamExplainImagesRequest(correlation_id=key, request=case.request)

        for _ in waiting:
            self._report(BEGUN)
        call = self._stub.StreamExplainImages(messages(), timeout=_PATIENT_S)
        try:
            while answers_before_end != 0:
                answer = next(call, None)
                if answer is None:
                    break
                if answers_before_end is not None:
                    answers_before_end -= 1
                case = waiting.pop(answer.correlation_id)  # each case is answered once
                if answer.HasField("response"):
                    self._judge(case, "OK", answer.response)
                else:
                    self._judge(case, _CODES[answer.error.code], None)
        except (grpc.RpcError, KeyError) as error:
            self._report(f"{WRONG}: the stream: {error!r}")
        call.cancel()
        for case in waiting.values():
            broken = answers_before_end == 0
            self._report("broken off" if broken else f"{WRONG}: {case.name}: no answer")

    def _judge(self, case: Case, code: str, response: pb.ExplainImageResponse | None) -> None:
        if code != case.code:
            self._report(f"{WRONG}: {case.name}: {code} in place of {case.code}")
        elif response is None:
            self._report(f"{RIGHT} {code}")
        elif case.accepts(response):
            self._report(RIGHT)
        else:
            self._report(f"{WRONG}: {case.name}: not the answer of a lone request")


class Tally:
    """Counts the reports of clients; safe for threads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def report(self, outcome: str) -> None:
        """Counts a report."""
        with self._lock:
            self.counts[outcome] += 1

    @property
    def begun(self) -> int:
        """Requests that were begun so far."""
        return self.counts[BEGUN]


def main() -> None:
    """Runs clients on four threads until the process is killed."""
    address, path, seed = sys.argv[1:]
    cases = load(Path(path))
    lock = threading.Lock()

    def report(outcome: str) -> None:
        with lock:
            sys.stdout.write(f"{outcome}\n")
            sys.stdout.flush()

    for number in range(4):
        client = Client(address, cases, 4 * int(seed) + number, report)
        threading.Thread(target=client.run, args=(lambda: True,)).start()


if __name__ == "__main__":
    main()
