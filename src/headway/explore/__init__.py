"""The explorer: a trace of one text through a model, and the page that shows it."""
