"""Images of one colour: a source of them, a model that names it, a stage, a metric and a table."""

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
