"""One image from bytes to answer.

explainer   a pipeline with its metrics and traces: what transports call
pipeline    the way of an image: decode, queue and batch, render
resolving   the model, layers, classes and passes of a request
budget      the memory that requests may need
ledger      the memory that callers hold
admission   the slots of a queue, shared among callers
loading     decodes an image and fits it to the model's input
many_pass   runs the methods of many passes
answer      makes the answer from the graph's output
sampling    insertion and deletion of a share of the answers
workers     threads that decode and render
fair_slots  slots that callers share by the seconds that they use
"""
