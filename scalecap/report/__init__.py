"""Pages that show what runs found: `report.html` of one, `comparison.html` of several.

Everything is read from the runs' folders; pictures are opened anew where the data has them.
"""
