"""The lab: what an idea buys, measured by training the same small GPT with and without it."""
