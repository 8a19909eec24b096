"""The server: decode -> queue and batch -> compiled graph -> render -> reply.

Importing this package, or its command line, imports neither TensorFlow nor OpenCV.
"""

__version__ = "0.1.0"
