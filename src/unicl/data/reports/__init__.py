"""Findings from the text of reports."""
