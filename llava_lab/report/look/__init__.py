"""12. Look: one training row, or questions with two runs' answers, on a page of their own."""

from llava_lab.report.look.write import write_look

__all__ = ["write_look"]
