"""Models independent of the engine: their sizes and the tables of their parameters."""
