"""Several processes that speak gRPC on one port and ask one engine (``--frontends``).

    connections, spread by the kernel (SO_REUSEPORT)
         |                       |                   |
    the first: server.py    another: main     another: main
         |                       |                   |
    engine_process: one engine, whose batches hold images of them all

The first starts the engine and the others (``others``), hands them connections to the engine, tells
them when to drain, starts those again that are lost, and adds their metrics to its own. They end
when it does. ``shares`` divides what is limited.
"""
