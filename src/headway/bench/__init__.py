"""The bench: compare implementations of attention by time, memory and correctness."""
