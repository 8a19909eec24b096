"""Runs a stream of the synchronous client with threads."""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.channel_pool import PooledChannel, Route
from gradcam_client.errors import GradCamError, from_rpc_error
from gradcam_client.requests import ImageInput, with_image
from gradcam_client.stream import OnProgress, Outcome, StreamLedger, ended_early
from gradcam_client.transport import END_S, Metadata


class ThreadedStream:
    """Connects a ``StreamLedger`` to gRPC with threads.

    The feeder iterates the user's images, the runner opens calls and reads their answers, a
    thread of gRPC sends the requests of ``_requests``, and the user's thread waits for outcomes.
    ``_changed`` guards the ledger and all fields.
    """

    def __init__(
        self,
        route: Route,
        ledger: StreamLedger,
        template: pb.ExplainImageRequest,
        on_progress: OnProgress | None,
    ) -> None:
        self._route = route
        self._ledger = ledger
        self._template = template
        self._on_progress = on_progress
        self._changed = threading.Condition()
        self._call: Any = None
        self._epoch = 0  # grows when a call begins or ends: events of older calls are ignored
        self._closed = False
        self._fault: BaseException | None = None

    def outcomes(self, images: Iterator[ImageInput]) -> Generator[Outcome]:
        # Daemons: an iterable that never returns must not keep the process alive.
        feeder = threading.Thread(
            target=self._feed, args=(images,), name="gradcam-feeder", daemon=True
        )
        runner = threading.Thread(target=self._run, name="gradcam-runner", daemon=True)
        feeder.start()
        runner.start()
        try:
            while (outcome := self._next_outcome()) is not None:
                yield outcome
            # The call is about to end; if it were cancelled, the server would count a failure.
            runner.join(END_S)
        finally:
            self._close()
            runner.join(END_S)
            feeder.join(END_S)  # the user's iterable may block it

    def _next_outcome(self) -> Outcome | None:
        with self._changed:
            while (outcome := self._ledger.next_outcome()) is None:
                if self._fault is not None:
                    raise self._fault
                if self._ledger.all_yielded:
                    if self._ledger.input_error is not None:
                        raise self._ledger.input_error
                    return None
                expires_in_s = self._ledger.expires_in_s(time.monotonic())
                if expires_in_s == 0:
                    self._ledger.expire()
                    self._drop_call()
                    self._changed.notify_all()
                else:
                    self._changed.wait(expires_in_s)
            self._changed.notify_all()  # there is room for another image
            return outcome

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changed.notify_all()

    def _close(self) -> None:
        with self._changing():
            self._closed = True
            self._drop_call()

    def _drop_call(self) -> None:
        self._epoch += 1
        if self._call is not None:
            self._call.cancel()
            self._call = None

    # The feeder.

    def _feed(self, images: Iterator[ImageInput]) -> None:
        error: BaseException | None = None
        try:
            while self._wait_for_room():
                try:
                    image = next(images)
                except StopIteration:
                    break
                self._take(image)
        except BaseException as raised:  # noqa: BLE001 - raised to the user
            error = raised
        with self._changing():
            self._ledger.end_input(error)

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ledger.has_room)
            return not self._closed

    def _take(self, image: ImageInput) -> None:
        try:
            request = with_image(self._template, image)
        except (OSError, TypeError, ValueError) as error:
            with self._changing():
                self._ledger.take_failed(image, error)
        else:
            with self._changing():
                self._ledger.take(image, request, time.monotonic())

    # The runner.

    def _run(self) -> None:
        try:
            while self._wait_until_due():
                self._run_call()
        except BaseException as fault:  # noqa: BLE001 - raised to the user
            with self._changing():
                self._fault = fault

    def _wait_until_due(self) -> bool:
        with self._changed:
            while not self._closed and not self._ledger.all_answered:
                due_in_s = self._ledger.due_in_s(time.monotonic())
                if due_in_s == 0:
                    return True
                self._changed.wait(due_in_s)
            return False

    def _run_call(self) -> None:
        metadata, channel = self._route.metadata(), self._route.begin()
        error: GradCamError = ended_early()
        try:
            call, epoch = self._open(channel, metadata)
            for answer in call:
                progress = None
                with self._changing():
                    if self._epoch == epoch:
                        progress = self._ledger.answered(answer, time.monotonic())
                if progress is not None and self._on_progress is not None:
                    self._on_progress(progress)
        except grpc.RpcError as rpc_error:
            error = self._route.failed(channel, from_rpc_error(rpc_error))
        finally:
            self._route.end(channel)
        with self._changing():
            if self._epoch == epoch:  # else the client cancelled the call
                self._ledger.broke(error, time.monotonic(), self._route.available_in_s)
                self._drop_call()

    def _open(self, channel: PooledChannel, metadata: Metadata) -> tuple[Any, int]:
        with self._changed:
            self._epoch += 1
            requests = self._requests(self._epoch)
            with self._route.unless_closed():
                self._call = channel.service.StreamExplainImages(requests, metadata=metadata)
            if self._closed:
                self._call.cancel()
            return self._call, self._epoch

    # The sender.

    def _requests(self, epoch: int) -> Iterator[pb.StreamExplainImagesRequest]:
        while (request := self._next_request(epoch)) is not None:
            yield request

    def _next_request(self, epoch: int) -> pb.StreamExplainImagesRequest | None:
        with self._changed:
            while self._epoch == epoch and not self._ledger.all_answered:
                now = time.monotonic()
                request = self._ledger.next_request(now)
                if request is not None:
                    return request
                self._changed.wait(self._ledger.due_in_s(now))
            return None
