"""What a model did with one text: the trace file, and the page that shows it."""
