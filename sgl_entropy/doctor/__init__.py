"""``sgl-entropy doctor``: is all in place for a server, and if not, what is to be done?

Nothing here imports SGLang, and torch is imported only to read the values of a drafter: it runs
on an unpacked copy, beside a GPU install on a machine without a GPU, and where SGLang itself does
not start.
"""

from sgl_entropy.doctor.examination import Question, examine
from sgl_entropy.doctor.report import Check, Report

__all__ = ["Check", "Question", "Report", "examine"]
