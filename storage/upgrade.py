"""Kept for scripts that call this file. It does what `cvaeopt admin upgrade` does."""

import sys

from cvaeopt.cli import main

sys.argv[1:1] = ["admin", "upgrade"]
main()
