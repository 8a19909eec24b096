"""Compiled graphs in a folder: written once with TensorFlow, served without it."""
