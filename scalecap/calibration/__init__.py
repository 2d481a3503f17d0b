"""A promise in place of a threshold: labelled statements in, a threshold with a guarantee out.

What is promised: draw a picture at random from where the labelled ones came from, and one of its checked
statements at random; if the check keeps it, it is wrong with a probability of at most `wrong`. The labels
are a random draw themselves, so this holds with the confidence asked for (0.95: for at least 95 of 100 such
draws). Every picture counts the same, however many statements it has.
"""
