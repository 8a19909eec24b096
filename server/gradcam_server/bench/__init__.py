"""Benchmarks of graphs and servers: ``gradcam bench``.

    statistics    samples -> medians, quartiles, and percentiles with enough samples
    interleave    measures subjects in turns, so that noise of the machine affects all alike
    worker        an object in a process of its own, with its own memory and environment
    results       the schema of results: rows, machine, versions, date and command -> JSON
    report        JSON -> tables and plots
    graph         the graph suite: compares implementations of Grad-CAM by answer and speed
    subjects        the compiled graphs of the server, and those of tutorials
    roofline        the lower bound of a model's time on a device
    graph_run       one run of the suite
    serving       the serving suite: servers under load, beside the bare graph
    load            closed and open loops, in processes of their own
    load_clients    clients of a gradcam server that make the load
    payload         the image and the request to send
    running         servers as child processes: start, CPU time, memory
    bare            the server's graph without a server
    serving_run     one run of the suite

Load, statistics and results import neither TensorFlow nor the server.
"""
