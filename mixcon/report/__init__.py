"""Pictures and a page made from what a run leaves in its folder."""

from mixcon.report.write import summary_lines, write_report

__all__ = ["summary_lines", "write_report"]
