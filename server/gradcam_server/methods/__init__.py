"""The explanation methods: the formulas, and which of them take one pass."""
