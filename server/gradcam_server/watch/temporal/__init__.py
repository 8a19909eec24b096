"""Steadies answers over time: reused answers and their audit, held targets, smoothed maps."""
