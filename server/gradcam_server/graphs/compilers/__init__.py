"""What makes a graph run: XLA, TensorFlow's executor, OpenVINO. A compiler is one module and one row."""
