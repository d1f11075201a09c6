"""The command `headway`: one small file a verb."""
