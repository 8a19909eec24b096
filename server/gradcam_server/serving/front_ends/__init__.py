"""Several processes that serve gRPC on one port with one engine (``--frontends``).

    connections, spread by the kernel (SO_REUSEPORT)
         |                       |                   |
    the first: server.py    another: main     another: main
         |                       |                   |
    engine.ipc: one engine, whose batches hold images of all front ends

The first front end starts the engine and the others, sends them connections to the engine, tells
them when to drain, restarts lost ones, and adds their metrics to its own. They end when it ends.
``config.shares`` divides limits.

    pool      the first front end's view of the others
    main      the process of another front end
    messages  what they send to each other
"""
