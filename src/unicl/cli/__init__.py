"""The command: one short function per verb. Heavy packages are imported inside, so that --help is quick."""

from unicl.cli.app import app, main

__all__ = ["app", "main"]
