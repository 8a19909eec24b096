"""KServe's protocols over HTTP: V1, and V2, the Open Inference Protocol.

json_values.py   values of JSON, checked; base64 and pixels among them
v1.py            instances -> ExplainImageRequests; ExplainImageResponses -> their answer
v2.py            JSON and binary tensors <-> the messages of the Open Inference Protocol
endpoints.py     the paths
openapi.py       the paths for openapi.json
"""
