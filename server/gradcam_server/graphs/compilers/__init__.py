"""What makes a graph run: XLA, TensorFlow's executor, OpenVINO."""
