"""The Open Inference Protocol (KServe and Triton "v2") over the same models and batches.

tensors.py     an input tensor -> images
convert.py     ModelInferRequest -> ExplainRequests; ExplainedImages -> ModelInferResponse
describe.py    what a model takes and gives: metadata and configuration
statistics.py  what was answered so far
service.py     the gRPC service
"""
