"""The report page: numbers, tables and pictures in, one self-contained HTML file out.

Plain Python and numpy; knows neither Ray, nor the stage kinds, nor where the numbers come from. ``page.render``
takes a :class:`rayddl.report.run.Run` and returns the whole page as text.
"""
