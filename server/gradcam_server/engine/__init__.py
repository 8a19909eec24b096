"""Loads models, compiles their graphs, and runs batches, in this process or in one of its own."""
