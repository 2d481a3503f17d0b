"""The embedded world: synthetic images with ground truth, and a tiny vision-language model for them."""
