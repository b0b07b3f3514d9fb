"""Hyperparameter optimisation for a pose-conditioned video CVAE.

`vae` trains one network. `search` and `suggest` decide what to train. `store` is the shared database, and `run` is the
worker. `outcome` makes recipes, reports and predictions from a study. Only `cli`, `commands` and `terminal` parse
arguments, print or exit.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cvaeopt")
except PackageNotFoundError:  # the source tree is on PYTHONPATH, but the package is not installed
    __version__ = "0+unknown"
