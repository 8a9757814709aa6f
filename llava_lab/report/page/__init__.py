"""12. Page: runs and findings -> one HTML page that needs nothing from outside."""

from llava_lab.report.page.write import write_page

__all__ = ["write_page"]
