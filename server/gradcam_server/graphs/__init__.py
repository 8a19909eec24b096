"""The explanation graph, which computes predictions and maps in one pass.

explanation    the graph as a function of tensors
compilers      make executables of it
executable     the compiled graph: runs batches, free of TensorFlow
devices        TensorFlow's devices, GPU memory and threads
threads        the number of threads that compute
training_mode  refuses models that run in training mode
"""
