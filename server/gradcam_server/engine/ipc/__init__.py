"""The engine in a process of its own, which may die without ending the server.

    front end: RemoteBackend  <-- messages over a socket -->  engine: main

The front end decodes, renders and serves gRPC; the engine holds TensorFlow and the devices,
and makes the batches. They share the messages and the images in shared memory, nothing else.

    process        starts the engine, watches it and lets other front ends join it
    client         a front end's connection to an engine
    main           the engine's process
    messages       what they send to each other
    shared_slots   images in memory that both processes map
    packing        the outputs of a batch as few large arrays
    fd_passing     file descriptors sent from one process to another
    child_process  starts, watches, ends and restarts child processes of the server
"""
