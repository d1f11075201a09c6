"""The ladder: nine rungs, each the one before plus one idea. `headway.ladder.rungs.LADDER`."""
