"""The engine in a process of its own, which may die without taking the server along.

    front end: RemoteBackend  <-- messages over a socket -->  engine: main

The front end decodes, renders and talks gRPC; the engine holds TensorFlow and the device,
and makes the batches. ``messages``, and the images in ``slots``, are all that they share. Other
front ends join the same engine by an ``EngineConnection``, which the first one hands them
(``door``).
"""
