"""Loads models, compiles their graphs, and runs batches, in this process or in a child process.

backend         computes images: the pipeline's view of an engine
engine          the models and their compiled graphs
batches         runners, the items that wait for them, and batches
device_account  the batches in flight on a device
scheduling      the policy of batching: which batch goes next
batcher         runs the batches
exclusive       runs measurements between batches
sources         where graphs come from: models or exports
ipc             the engine in a process of its own
"""
