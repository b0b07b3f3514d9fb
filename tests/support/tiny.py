"""The tiny data, settings and study of `testbed.tiny`."""

from testbed.tiny import DATA, WIDTHS, config, dataset, definition, new_study

__all__ = ["DATA", "WIDTHS", "config", "dataset", "definition", "new_study"]
