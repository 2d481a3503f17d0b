"""Experiments that evaluate pipelines on the embedded world."""
