"""Activations: a deep network's layers by norm, measured at each step of a short training."""
