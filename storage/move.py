"""Kept for scripts that call this file. It does what `cvaeopt admin move` does."""

import sys

from cvaeopt.cli import main

sys.argv[1:1] = ["admin", "move"]
main()
