"""Ways to run the mechanism. `plain` is the mechanism itself; every other is held to it."""
