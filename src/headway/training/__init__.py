"""What training is, whatever engine does it: its settings, its schedule and its run directory."""
