"""XLA: the choice on GPUs."""

from functools import partial

from gradcam_server.compilers import tensorflow

prepare = partial(tensorflow.prepare, jit_compile=True)
