"""Pictures, tables and a self-contained HTML page from the results of a comparison.

Everything here takes NumPy arrays and plain dicts, as read back from `results.json`: nothing is computed on a
device, and no part knows how the numbers came about.
"""
