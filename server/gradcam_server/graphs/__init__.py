"""The compiled explanation graph: built, compiled, measured and run."""
