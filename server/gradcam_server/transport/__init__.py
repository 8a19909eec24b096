"""What speaks with callers: gRPC, HTTP, and who may call."""
