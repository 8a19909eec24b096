"""``gradcam.v1``, the server's own protocol.

convert.py  ExplainImageRequest -> ExplainRequest; ExplainedImage -> ExplainImageResponse
service.py  the gRPC service
wire.py     reads requests without copying their pixels
"""
