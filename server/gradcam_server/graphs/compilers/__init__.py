"""The compilers, which make executables of a graph.

base              the table of compilers: one row for each
tensorflow        TensorFlow's executor, and XLA
openvino          OpenVINO: converts the graph
openvino_runtime  OpenVINO: runs the model, free of TensorFlow
pjrt              XLA by JAX: converts the graph to StableHLO
pjrt_modules      StableHLO modules: checks and edits, free of TensorFlow
pjrt_devices      JAX's devices, threads, memory and cache
pjrt_runtime      XLA by JAX: runs a module, free of TensorFlow
autotune          chooses the compiler: the one of the settings, or the fastest
streams           chooses how many batches a CPU computes at the same time
timing_cache      the times of earlier choices, on disk
soonest           the graph that is ready soonest, for the first answers
"""
