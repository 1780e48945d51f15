"""SGLang's own modules are imported on a machine without a GPU, so its CPU engine is asked for."""

from __future__ import annotations

import os

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
