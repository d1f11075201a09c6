"""The JAX engine: pure functions of a dictionary of parameters, named as in a checkpoint."""
