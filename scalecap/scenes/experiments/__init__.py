"""Pipelines measured on the embedded world."""
