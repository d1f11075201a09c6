"""The ladder: each rung adds one idea to the previous rung. See `headway.ladder.rungs.LADDER`."""
