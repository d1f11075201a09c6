"""Attention: the formula, its options and its kernels, on arrays of NumPy, PyTorch or JAX."""
