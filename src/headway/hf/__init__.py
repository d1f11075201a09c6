"""Hugging Face: the names and orientations of its models' parameters."""
