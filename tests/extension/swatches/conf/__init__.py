"""Hydra finds options in a package alone: hydra.searchpath=[pkg://swatches.conf]."""
