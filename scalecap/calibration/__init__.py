"""Risk control for checks: labelled statements in, a threshold with a guarantee (a promise) out.

The guarantee: draw an image at random from the distribution of the labelled ones, and one of its checked
statements at random; if the check keeps it, it is wrong with a probability of at most `wrong`. It holds with
the given confidence over the random sample of labels (0.95: for at least 95 of 100 such samples). Every image
has the same weight, however many statements it has.
"""
