"""Renders numbers, tables and pictures of a run as one self-contained HTML page.

Plain Python and numpy; imports neither Ray nor stage kinds. ``page.render`` takes a :class:`rayddl.report.run.Run`
and returns the page as text.
"""
