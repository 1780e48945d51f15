"""``sgl-entropy doctor``: is everything in place for a server, and if not, what should be done?

Nothing here imports SGLang, and torch is imported only to read a drafter's values. So the doctor
also works on an unpacked copy of SGLang, on a GPU install where there is no GPU, and where SGLang
itself does not start.
"""

from sgl_entropy.doctor.diagnosis import Check, Diagnosis
from sgl_entropy.doctor.examination import ExaminationRequest, examine

__all__ = ["Check", "Diagnosis", "ExaminationRequest", "examine"]
