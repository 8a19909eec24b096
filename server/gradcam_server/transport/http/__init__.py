"""The HTTP port: the API of gradcam.v1 over HTTP, metrics and probes.

app.py           the application: its routes
explain.py       POST .../NAME:explain; models.py describes models
call.py          a request as a call: access, lifecycle, deadline, metrics, as over gRPC
body.py          reads bodies within limits
negotiation.py   what a body is, and which form the answer has
options.py       options as query parameters or fields of a form (multipart.py)
documents.py     strict JSON, and proto3's JSON form of messages
answers.py       answers as JSON, pictures or arrays
problems.py      errors as problem details
openapi.py       /openapi.json, and /docs (docs_page.py)
probes.py        /metrics, /healthz, /readyz; probe_answer.py makes their answers
page.py          the page for people
server.py        binds the port; protocol.py and guard.py limit connections and answers
"""
