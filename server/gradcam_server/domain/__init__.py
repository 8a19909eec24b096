"""Plain values that the parts of the server exchange.

Free of TensorFlow, OpenCV, gRPC and protobuf.

requests.py       requests to explain images, and their answers
registry.py       the explanation methods, a row for each
graph_io.py       keys, inputs and outputs of compiled graphs
catalog.py        the served models and their warm graphs
labels.py         class names
layers.py         the layers of a network
warm.py           the values of --warm
options.py        named choices of the settings and of models
preprocessing.py  how pixels are scaled for a network
model_spec.py     which models exist, and what to load
batch_sizes.py    the batch sizes that are compiled
schedule.py       when an item must be computed, and the report of its batch
fair_shares.py    fair shares of a resource among callers
hold_state.py     what the bytes of a request are held for
"""
