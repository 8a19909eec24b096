"""What the parts of the server tell each other: plain values, free of TensorFlow, OpenCV, gRPC and protobuf."""
