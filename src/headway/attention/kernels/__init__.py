"""Kernels: implementations of attention. `plain` is the formula; tests compare the others to it."""
