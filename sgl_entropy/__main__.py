"""``python -m sgl_entropy``."""

import sys

from sgl_entropy.cli import main

sys.exit(main())
