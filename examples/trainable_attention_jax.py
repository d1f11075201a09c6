"""Trainable attention in JAX, from the three matrices to the first steps of learning.

    python examples/trainable_attention_jax.py

Six words, three features each. The task: say of every word what the word before it was. That takes
looking back by position, which the words' features alone do not tell, so each gets its position as
a fourth feature.
"""
