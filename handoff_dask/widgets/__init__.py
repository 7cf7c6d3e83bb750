"""What notebooks show: data in, HTML and SVG text out. It knows nothing of Dask.

Text that came from users is escaped by ``markup``; colours hold on light and dark backgrounds.
"""
