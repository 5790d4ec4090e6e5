"""The wing that knows notebooks and no science: parameters, start, execution, report, site.

Nothing here imports the science modules, and they do not import this; both stand on `cilkit.artifacts`.
"""
