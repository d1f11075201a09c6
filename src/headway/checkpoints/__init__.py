"""Weights on disk: safetensors, written whole or not at all."""
