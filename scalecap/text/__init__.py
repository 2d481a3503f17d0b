"""Text: segmentation, templates, parsing."""
