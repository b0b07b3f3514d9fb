"""`python -m cvaeopt` is the command line."""

from cvaeopt.cli import main

main()
