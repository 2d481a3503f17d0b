"""Steps bound to stages, and the rows that run through them. Begin with `pipeline.py`."""
