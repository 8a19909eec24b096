"""XLA: the choice on GPUs."""

from functools import partial

from gradcam_server.graphs.compilers import tensorflow

prepare = partial(tensorflow.prepare, jit_compile=True)
