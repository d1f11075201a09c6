"""The bench: ways to run attention, measured beside each other, with what they cost and whether
they are right."""
