"""Plan a training run before any money is spent: its memory, its time, and what limits it."""
