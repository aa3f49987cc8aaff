"""Tars of any size, on this disk or elsewhere: where their members are, and how they get here."""
