"""Kernels: implementations of attention. `plain` is the formula; the tests compare all to it."""
