"""The compilers, which make executables of a graph.

base              the table of compilers: one row for each
tensorflow        TensorFlow's executor, and XLA
openvino          OpenVINO: converts the graph
openvino_runtime  OpenVINO: runs the model, free of TensorFlow
autotune          chooses the compiler: the one of the settings, or the fastest
timing_cache      the times of earlier choices, on disk
soonest           the graph that is ready soonest, for the first answers
"""
