"""The HTTP port: metrics and probes (probes.py)."""
