"""One image from bytes to answer.

explainer    a pipeline with its metrics and traces: what transports call
pipeline     the way of an image: decode, queue and batch, render
translation  a request in terms of the graph, and the graph's output as an answer
budget       the memory that requests may need
ledger       the memory that callers hold
admission    the slots of a queue, shared among callers
many_pass    runs the methods of many passes
sampling     insertion and deletion of a share of the answers
workers      threads that decode and render
fair_slots   slots that callers share by the seconds that they use
"""
