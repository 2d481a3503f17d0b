"""The embedded world: images with known truth, and a tiny model at home in it."""
