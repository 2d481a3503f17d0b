"""How the tiny model is trained."""
