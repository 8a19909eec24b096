"""The options that several benchmarks of servers share."""

import argparse
from pathlib import Path

from peers.servers import PEERS


def add_run_options(
    parser: argparse.ArgumentParser, *, seconds: float, rounds: int, output: str
) -> None:
    """Adds what is sent, for how long, and where the results go.

    Args:
        parser: The parser to extend.
        seconds: The default duration of a phase.
        rounds: The default number of rounds.
        output: The default file of results.
    """
    parser.add_argument("--image", type=Path, help="the file to send; the default is generated")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each phase")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--trial", action="store_true", help="the figures are not to be quoted")
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("serve", nargs="*", help="after --: options of gradcam serve")


def add_peer_options(parser: argparse.ArgumentParser) -> None:
    """Adds which peers run, and how."""
    parser.add_argument(
        "--peer",
        action="append",
        choices=("none", *PEERS, *(f"{key}:{workers}" for key in PEERS for workers in (1, 2))),
        help="all by default; ray:2 for a number of workers of its own",
    )
    parser.add_argument(
        *("--python", "-p"),
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="the interpreter that has the peer, if it is not this one",
    )
    parser.add_argument("--workers", default="1", help="of each peer; 1,2 for both (default 1)")
    parser.add_argument("--delay-ms", type=float, default=2.0, help="of the peers' batches")
    parser.add_argument(
        "--hand-made",
        type=Path,
        metavar="FOLDER",
        help="what peers.hand_made wrote: peers run it, too",
    )
