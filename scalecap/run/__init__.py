"""One run, start to end, and its folder."""
