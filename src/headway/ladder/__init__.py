"""The ladder: rungs, each the one before plus one idea. `headway.ladder.rungs.LADDER`."""
