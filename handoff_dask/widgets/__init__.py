"""What notebooks and panels show: data in, HTML and SVG out, without Dask.

``markup`` escapes the text of users. Colours work on light and dark backgrounds.
"""
