"""The whole suite in two processes: tests that start SGLang, and beside them all others.

Servers of the engine tests keep one core busy and the other idle. Each half ends with its slowest
tests. With arguments (`make test ARGS='-k easd'`) this is plain pytest with them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

PYTEST = [sys.executable, "-m", "pytest"]
# A cache of its own, so that neither half forgets what failed in the other.
ENGINE = [*PYTEST, "--durations=25", "-m", "engine", "-o", "cache_dir=.pytest_cache/engine"]
OTHERS = [*PYTEST, "--durations=25", "-m", "not engine"]


def main(arguments: list[str]) -> int:
    if arguments:
        return subprocess.run([*PYTEST, *arguments]).returncode
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        engine = subprocess.Popen(ENGINE, stdout=log, stderr=subprocess.STDOUT)
        others = subprocess.Popen(OTHERS)
        try:
            codes = [others.wait(), engine.wait()]
        except KeyboardInterrupt:
            # Ctrl-C reached both: they end their servers, then themselves.
            codes = [others.wait(), engine.wait()]
        log.seek(0)
        print("\ntests that start SGLang:", log.read(), sep="\n", flush=True)
    print(f"both halves: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
