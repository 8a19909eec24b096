"""The protocols that clients speak: gRPC services, the HTTP port, and access control.

gradcam_v1/      the service gradcam.v1.ExplanationService
open_inference/  the service inference.GRPCInferenceService (KServe and Triton "v2")
admin.py         the service gradcam.admin.v1.AdminService, on a port of its own
calls.py         admits, records and traces calls; turns errors into statuses
streams.py       the loop that answers a stream of requests
sending.py       when an answer is sent; cutting off calls whose answers are not read
status.py        errors to gRPC statuses
lifecycle.py     the server's phase, and the number of calls in work
grpc_server.py   the gRPC port of one process
http/            the HTTP port: the API over HTTP, metrics and probes
security/        TLS, tokens, limits
"""
