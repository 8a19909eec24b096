"""Keras networks, SavedModels and PyTorch checkpoints, loaded into one form."""
