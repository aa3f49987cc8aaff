"""What is wrong with this data, before training: `check` and its report."""

from unicl.data.check.page import page
from unicl.data.check.report import CheckReport, Finding, Level
from unicl.data.check.run import check
from unicl.data.check.terminal import show

__all__ = ["CheckReport", "Finding", "Level", "check", "page", "show"]
