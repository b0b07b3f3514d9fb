"""Kept for scripts that call this file: it does what `cvaeopt admin upgrade` does."""

import sys

from cvaeopt import cli
from cvaeopt.commands import admin

cli.app.add_typer(admin.app, name="admin")
sys.argv[1:1] = ["admin", "upgrade"]
cli.main()
