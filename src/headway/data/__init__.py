"""Data for training: texts, sentence pairs, tokenizers and batches."""
