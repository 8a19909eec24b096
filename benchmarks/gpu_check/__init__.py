"""Checks and measures on a GPU machine, from one folder, without network and without TensorFlow.

``bundle`` writes the folder on a machine with TensorFlow; ``run`` checks it on the GPU machine.
"""
