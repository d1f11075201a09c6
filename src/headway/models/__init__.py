"""What a model is, whatever engine runs it: its sizes and the table of its parameters."""
