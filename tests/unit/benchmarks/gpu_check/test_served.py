"""The server is put under load as the machine allows, by options that it has."""

import asyncio
from pathlib import Path

import pytest

from gpu_check.served import SeveralConnections, effort_for, serve_options
from gradcam_server.cli.serve import read_arguments
from gradcam_server.exports.manifest import read_manifest
from support.tiny_stablehlo import write_stablehlo


@pytest.mark.parametrize(
    ("platform", "cores", "frontends", "generators"),
    [
        ("cuda", 16, (8, 4, 1), 6),
        ("cuda", 8, (4, 1), 2),
        ("cuda", 2, (1,), 1),
        ("cuda", 64, (8, 4, 1), 6),
        ("cpu", 16, (1,), 1),
    ],
)
def test_front_ends_and_generators_leave_a_core_to_the_engine(
    platform: str, cores: int, frontends: tuple[int, ...], generators: int
) -> None:
    """As many front ends are measured as cores allow, and always one."""
    effort = effort_for(platform, cores)
    assert (tuple(effort.frontends), effort.generators) == (frontends, generators)


class CountingClient:
    """A load client that counts its requests."""

    def __init__(self) -> None:
        self.requests, self.opened, self.closed = 0, False, False

    async def open(self) -> None:
        self.opened = True

    async def explain(self) -> None:
        self.requests += 1

    async def close(self) -> None:
        self.closed = True


def test_requests_are_spread_over_all_connections() -> None:
    """The kernel spreads connections over front ends, so each of them must be used."""
    clients = [CountingClient() for _ in range(3)]

    async def send() -> None:
        client = SeveralConnections(iter(clients).__next__, 3)()
        await client.open()
        await asyncio.gather(*(client.explain() for _ in range(7)))
        await client.close()

    asyncio.run(send())
    assert sorted(client.requests for client in clients) == [2, 2, 3]
    assert all(client.opened and client.closed for client in clients)


@pytest.mark.parametrize("cache", [None, Path("cache")])
def test_the_server_takes_the_options(tmp_path: Path, cache: Path | None) -> None:
    """They are options of gradcam serve, with every batch size of the export."""
    write_stablehlo(tmp_path / "tiny", (1, 2, 4))
    sizes = list(read_manifest(tmp_path / "tiny").graphs[0].modules)
    config = read_arguments(serve_options(tmp_path / "tiny", sizes, "CPU:0", 4, cache))
    assert config.batch_sizes == (1, 2, 4)
    assert config.frontends == 4
    assert config.max_queue_length >= 8 * max(config.batch_sizes)
    assert config.cache_dir == (None if cache is None else "cache")
