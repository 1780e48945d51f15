"""The committed figure for sampling: ``python -m tests.engine.figure_sampled [--draws N]``.

Draws of the first three tokens at temperature 0.8 and 1.3, top-p 0.9, from real servers of the
tiny target with and without a drafter, against the exact joint distribution that transformers
gives for the same weights (chi-square). Writes bench/results/sampled.{json,md}.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from sgl_entropy_bench.figures.figure_plan import FigurePlan, write_results
from sgl_entropy_bench.server.arms import Engine

from sgl_entropy.base.tables import markdown_table
from tests.engine.conftest import COMPARED, Fleet
from tests.engine.test_sampling import SETTINGS, draw, joint, known
from tests.runtime.chi_square import p_value

# Eight tests: a sound server stays above this with probability 0.992.
SIGNIFICANT = 1e-3


def main() -> int:
    """Measure, write, print; 1 where a test is significant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=50_100, help="a multiple of 300")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        try:
            for name in ("cold", "hot"):
                setting = SETTINGS[name]
                law = joint(fleet.target, setting)
                for arm in COMPARED:
                    drawn = draw(fleet.client(arm), setting, args.draws)
                    rows.append(
                        {
                            "arm": arm,
                            "temperature": setting.temperature,
                            "top_p": setting.top_p,
                            "draws": len(drawn),
                            "outcomes": len(law),
                            "p_value": p_value(known(drawn, law), law),
                        }
                    )
                    print(rows[-1], file=sys.stderr, flush=True)
            edsd, eagle3 = (fleet.arms[name][0].drafter for name in ("edsd_chain", "eagle3"))
            assert edsd is not None
            assert eagle3 is not None
            plan = FigurePlan(
                Engine(fleet.target), eagle3, edsd, None, Path(folder), args.out.resolve()
            )
            page = "\n\n".join(
                [
                    "# Sampled output against the exact joint distribution",
                    "First three tokens of a tiny target's answers, chi-square against the law "
                    "computed by transformers from the same weights; outcomes expected fewer "
                    "than five times are pooled. A server that sampled 25 % off in temperature "
                    "fails the same test (tests/engine/test_sampling.py).",
                    markdown_table(
                        ("arm", "temperature", "top-p", "draws", "possible outcomes", "p value"),
                        [
                            [
                                row["arm"],
                                f"{row['temperature']}",
                                f"{row['top_p']}",
                                f"{row['draws']}",
                                f"{row['outcomes']}",
                                f"{row['p_value']:.3f}",
                            ]
                            for row in rows
                        ],
                    ),
                ]
            )
            print(page, write_results(plan, "sampled", {"rows": rows}, page), sep="\n\n")
        finally:
            fleet.close()
    return 1 if any(float(row["p_value"]) < SIGNIFICANT for row in rows) else 0  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
