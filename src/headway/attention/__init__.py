"""Exchangeable parts: pure functions on arrays of NumPy, PyTorch or JAX."""
