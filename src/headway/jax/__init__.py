"""The JAX engine: pure functions on parameters, which are arrays by their checkpoint's names."""
