"""The second edition of the embedded world, whose model is still to be trained.

`python -m scalecap.scenes.second.train DIR` makes it. Until then `data=scenes`, its metrics and the model in
the package are of the first edition, `scalecap.scenes`, which this one then replaces.
"""
