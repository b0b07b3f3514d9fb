"""Kept for scripts that call this file. It does what `cvaeopt admin backup` does."""

import sys

from cvaeopt.cli import main

sys.argv[1:1] = ["admin", "backup"]
main()
