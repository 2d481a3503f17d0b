"""The embedded world: pictures with known truth, and a tiny model at home in it."""
