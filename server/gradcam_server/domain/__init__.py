"""Plain values that the parts of the server exchange.

Free of TensorFlow, OpenCV, gRPC and protobuf.
"""
