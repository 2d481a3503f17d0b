"""Stages whose column is a number, or a small record of numbers (`scalecap.stages.Measures`).

They are stages like any other, in a folder of their own to be found; the summary averages them.
"""
