"""Both clients behind one interface, so that one test covers both."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Protocol, TypeAlias, TypeVar

from gradcam_client import AsyncClient, Client, ImageExplanation, ImageInput, Outcome

_T = TypeVar("_T")


class BlockingClient(Protocol):
    """The methods of a client that the tests use."""

    def explain(self, image: ImageInput, **options: Any) -> ImageExplanation: ...

    def explain_together(self, images: Sequence[bytes]) -> list[ImageExplanation]: ...

    def explain_stream(self, images: Sequence[ImageInput], **options: Any) -> list[Outcome]: ...

    def health(self) -> str: ...

    def wait_ready(self, timeout_s: float) -> None: ...


Connect: TypeAlias = Callable[..., Any]
"""Takes the arguments of a client; returns a context manager that yields a ``BlockingClient``."""


class _Sync:
    def __init__(self, client: Client) -> None:
        self.client = client

    def explain(self, image: ImageInput, **options: Any) -> ImageExplanation:
        return self.client.explain(image, **options)

    def health(self) -> str:
        return self.client.health()

    def wait_ready(self, timeout_s: float) -> None:
        self.client.wait_ready(timeout_s)

    def explain_together(self, images: Sequence[bytes]) -> list[ImageExplanation]:
        with ThreadPoolExecutor(len(images)) as pool:
            return list(pool.map(self.client.explain, images))

    def explain_stream(self, images: Sequence[ImageInput], **options: Any) -> list[Outcome]:
        return list(self.client.explain_stream(images, **options))


class _Async:
    def __init__(self, runner: asyncio.Runner, client: AsyncClient) -> None:
        self.runner, self.client = runner, client

    def _run(self, coroutine: Coroutine[None, None, _T]) -> _T:
        return self.runner.run(coroutine, context=copy_context())  # not the older one of the runner

    def explain(self, image: ImageInput, **options: Any) -> ImageExplanation:
        return self._run(self.client.explain(image, **options))

    def explain_together(self, images: Sequence[bytes]) -> list[ImageExplanation]:
        async def together() -> list[ImageExplanation]:
            return await asyncio.gather(*map(self.client.explain, images))

        return self._run(together())

    def explain_stream(self, images: Sequence[ImageInput], **options: Any) -> list[Outcome]:
        async def collect() -> list[Outcome]:
            return [outcome async for outcome in self.client.explain_stream(images, **options)]

        return self._run(collect())

    def health(self) -> str:
        return self._run(self.client.health())

    def wait_ready(self, timeout_s: float) -> None:
        self._run(self.client.wait_ready(timeout_s))


@contextmanager
def connect_sync(*args: Any, **options: Any) -> Iterator[BlockingClient]:
    with Client(*args, **options) as client:
        yield _Sync(client)


@contextmanager
def connect_async(*args: Any, **options: Any) -> Iterator[BlockingClient]:
    async def make() -> AsyncClient:
        return AsyncClient(*args, **options)

    with asyncio.Runner() as runner:
        client = runner.run(make())
        yield _Async(runner, client)
        runner.run(client.close())
