"""HTML pages of results: `report.html` of one run, `comparison.html` of several; data set cards.

Everything is read from the runs' folders; images are read again from the data.
"""
