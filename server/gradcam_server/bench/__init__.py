"""Benchmarks that tell the truth: ``gradcam bench``.

    statistics   samples -> medians, spreads, percentiles that the sample can bear
    interleave   subjects take turns, so that the machine's moods meet them all
    worker       a subject in a process of its own, so that its memory is its own
    results      what was found, where, when and how -> JSON
    load         closed and open loops, in processes of their own
    serving      served against bare graph, at growing load
    graph        the compiled graph against other ways to the same answer
    report       JSON -> tables and plots

Load, statistics and results know neither TensorFlow nor the server.
"""
