"""Hyperparameter optimisation for a pose-conditioned video CVAE.

Rooms: `vae` trains one network, `search` decides what to train, `outcome` turns a finished study into
things people keep, and `cli` is the only place that parses, prints or exits.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cvaeopt")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+unknown"
