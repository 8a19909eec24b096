"""The Open Inference Protocol (KServe and Triton "v2") over the same models and batches.

tensors.py     an input tensor -> images
convert.py     ModelInferRequest -> ExplainRequests; ExplainedImages -> ModelInferResponse
describe.py    a model's inputs and outputs: metadata and configuration
statistics.py  counts and durations of answered requests
service.py     the gRPC service
"""
