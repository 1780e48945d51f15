"""``sgl-entropy bench VERB``: load tests of running servers, or of servers that it starts."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sgl_entropy.cli.inputs import ARMS_FILE, input_file
from sgl_entropy.cli.output import check_folder, write_json

if TYPE_CHECKING:
    from sgl_entropy_bench.load.run.arms import LoadArm
    from sgl_entropy_bench.load.run.campaign import Campaign
    from sgl_entropy_bench.load.run.measure import LoadPlan

    Act = Callable[[Campaign], None]

VERBS = {
    "latency": "open loop: latency at given arrival rates (Table 5 of the EDSD paper)",
    "throughput": "closed loop: tokens/s at a given number of requests at a time (Table 4)",
    "capacity": "closed loop: the rate of requests at which an arm is saturated",
    "speed": "one request at a time: speed-up and tau by benchmark (Table 1)",
    "report": "turn result folders into one HTML page with plots, and Markdown tables",
    "merge": "join the result folders of several clients that shared a load",
    "judge": "judge result folders anew, from their records, by the rules of this version",
}
# Of each verb: its first example is also shown by `bench --help`.
EXAMPLES = {
    "latency": (
        "--arms none=http://h:30000,edsd=http://h:30001 --qps 2,3,4,5",
        "--launch arms.toml --load 0.4,0.6,0.8,0.95 --out run1",
        "--arms edsd=http://h:30001 --arrivals trace:times.txt --slo e2e=10",
    ),
    "throughput": ("--launch arms.toml --concurrency 1,2,4,8,16",),
    "capacity": ("--arms none=http://h:30000 --concurrency 64",),
    "speed": ("--launch arms.toml --prompts data/bench",),
    "report": ("run1 --out run1", "run1 run2 --out both"),
    "merge": ("client0 client1 client2 --out all",),
    "judge": ("run1", "client0 client1"),
}
READERS = ("report", "merge", "judge")
MEASURED = """
An arms file names the servers that --launch starts; bench/README.md describes it.

exit codes: 0 valid, 3 measured but invalid (every reason is printed), 1 could not measure,
2 wrong arguments, 130 interrupted (what was measured is kept and marked as partial)."""
READ = """
exit codes: 0 done, 3 a merged or judged run is not valid, 2 wrong arguments or folders."""
EXIT_INVALID = 3
N = TypeVar("N", int, float)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``bench``."""
    verbs = parser.add_subparsers(dest="what", metavar="VERB", required=True)
    for name, help_line in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=help_line,
            description=help_line[0].upper() + help_line[1:] + ".",
            epilog=_epilog([name], 3),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in READERS:
            sub.add_argument(
                "folders", nargs="+", type=Path, metavar="DIR", help="what --out of a run received"
            )
            if name != "judge":
                sub.add_argument(
                    "--out",
                    type=Path,
                    required=True,
                    metavar="DIR",
                    help="what is written goes here",
                )
            continue
        _add_arms(sub)
        _add_workload(sub)
        _add_run(sub)
        if name == "latency":
            _add_latency(sub)
        elif name == "throughput":
            sub.add_argument(
                "--concurrency",
                default="8,16,32,64,128,256",
                metavar="LIST",
                help="requests at a time (default: %(default)s)",
            )
        elif name == "capacity":
            sub.add_argument(
                "--concurrency",
                type=int,
                default=64,
                metavar="N",
                help="requests at a time (default: %(default)s)",
            )
    parser.epilog = _epilog(list(VERBS), 1)


def _epilog(verbs: Sequence[str], most: int) -> str:
    """At most so many examples of each verb, and the exit codes."""
    lines = [f"  sgl-entropy bench {v} {words}" for v in verbs for words in EXAMPLES[v][:most]]
    codes = READ if set(verbs) <= set(READERS) else MEASURED
    return "\n".join(["examples:", *lines, codes])


def _add_arms(parser: argparse.ArgumentParser) -> None:
    arms = parser.add_mutually_exclusive_group(required=True)
    arms.add_argument("--arms", metavar="NAME=URL,...", help="running servers")
    arms.add_argument(
        "--launch",
        type=ARMS_FILE,
        metavar="FILE",
        help="an arms file: the server of each arm is started, measured and stopped in turn",
    )
    parser.add_argument(
        "--api",
        default="auto",
        choices=("auto", "generate", "chat", "completions"),
        help="route; auto: /generate if a chat template is at hand, else chat (default: auto)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="folder with the chat template that is applied to prompts for /generate",
    )


def _add_workload(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--prompts",
        action="append",
        default=[],
        metavar="FILE|DIR|hf:NAME",
        help="JSON Lines (rows with turns, prompt, question or conversations), a folder of them, "
        "or a data set as hf:NAME:SPLIT:FIELD; several may be given (default: built-in prompts)",
    )
    add(
        "--per-benchmark",
        type=int,
        default=80,
        metavar="N",
        help="prompts of each benchmark (default: %(default)s)",
    )
    add(
        "--max-tokens",
        type=int,
        default=256,
        metavar="N",
        help="the most tokens of an answer (default: %(default)s)",
    )
    add("--ignore-eos", action="store_true", help="every answer has exactly --max-tokens tokens")
    add("--temperature", type=float, default=0.0, help="0 = greedy (default: %(default)s)")
    add("--no-stream", action="store_true", help="ask for whole replies: end-to-end latency only")
    add(
        "--warmup",
        type=int,
        default=8,
        metavar="N",
        help="warm-up prompts before the run, none of them measured (default: %(default)s)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--num-requests",
        type=int,
        default=400,
        metavar="N",
        help="measured requests for each arm and load (default: %(default)s)",
    )
    add(
        "--ramp",
        type=int,
        metavar="N",
        help="requests before those, not measured (default: a tenth of --num-requests)",
    )
    add("--seed", type=int, default=0, help="of arrivals and order (default: %(default)s)")
    add("--processes", type=int, default=1, metavar="N", help="client processes (default: 1)")
    add("--timeout", type=float, default=600.0, metavar="S", help="a request fails after S seconds")
    add(
        "--stall",
        type=float,
        default=120.0,
        metavar="S",
        help="... or after S seconds without a connection or a byte",
    )
    add("--slo", metavar="e2e=S,ttft=S,tpot=S", help="limits of one request, for goodput")
    add("--out", type=Path, metavar="DIR", help="results and records (default: bench-DATE)")
    add("--json", type=Path, metavar="FILE", help="also write the result here; - is stdout")
    add(
        "--resume",
        action="store_true",
        help="keep the results in --out that have the same settings",
    )


def _add_latency(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        "--qps", metavar="LIST", help="requests/s for each data-parallel rank, such as 2,3,4"
    )
    rates.add_argument(
        "--load",
        metavar="LIST",
        help="shares of the capacity of the arm `none` (else the first), which is measured first",
    )
    add(
        "--dp-size",
        type=int,
        metavar="N",
        help="data-parallel ranks (default: what the server reports)",
    )
    add(
        "--arrivals",
        default="poisson",
        metavar="LAW",
        help="poisson, gamma:CV, constant or trace:FILE (default: %(default)s)",
    )
    add(
        "--stream",
        default="0/1",
        metavar="I/N",
        help="this is client I (from 0) of N on machines of their own that share the load: it "
        "takes an N-th of the rate and of the prompts; `bench merge` joins their folders",
    )
    add(
        "--start-at",
        metavar="TIME",
        help="begin then (seconds since 1970, or 2026-01-31T12:00:00Z): clients that share a load "
        "must begin together; for one arm and one load",
    )
    add(
        "--capacity-concurrency",
        type=int,
        default=64,
        metavar="N",
        help="requests at a time for each rank while the capacity is measured "
        "(default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print tables; see MEASURED and READ for exit codes."""
    from sgl_entropy_bench.http.client import ServerError
    from sgl_entropy_bench.load.page.report import text_tables
    from sgl_entropy_bench.load.run.pool import ClientError
    from sgl_entropy_bench.server.launch import StartError

    check_folder("--out", getattr(args, "out", None))
    if args.what in READERS:
        return _after(args)
    campaign, act = _prepared(args)
    interrupted: KeyboardInterrupt | None = None
    try:
        act(campaign)
    except KeyboardInterrupt as error:
        campaign.interrupted, interrupted = True, error
        campaign.compare()
        campaign.write()
    except (ServerError, StartError, ClientError, OSError, ValueError) as error:
        campaign.interrupted = True
        print(f"sgl-entropy bench {args.what}: {error}", file=sys.stderr)
        if campaign.results:
            campaign.compare()
            campaign.write()
            print(f"finished measurements are in {campaign.out}", file=sys.stderr)
        return 1
    report = campaign.report()
    if not write_json(report.to_json(), args.json):
        print(text_tables(report))
        print(f"\nresults: {campaign.out}", file=sys.stderr)
    if interrupted is not None:
        raise interrupted
    return 0 if report.valid else EXIT_INVALID


def _prepared(args: argparse.Namespace) -> tuple[Campaign, Act]:
    """The campaign that the arguments ask for, and what runs it. Raises ValueError."""
    from sgl_entropy_bench.load.run.arms import parse_arms, read_arms
    from sgl_entropy_bench.load.run.campaign import Campaign

    plan = _plan(args)
    arms = parse_arms(args.arms) if args.arms else read_arms(args.launch)
    latency = args.what == "latency"
    act = _open_loop(args, plan, arms) if latency else _closed_loop(args)
    campaign = Campaign(
        args.what,
        plan,
        arms,
        args.out or Path(f"bench-{datetime.datetime.now():%Y%m%d-%H%M%S}"),
        args.api,
        args.tokenizer,
        args.resume,
    )
    return campaign, act


def _plan(args: argparse.Namespace) -> LoadPlan:
    """What all arms share. Raises ValueError."""
    from sgl_entropy_bench.http.routes import Output
    from sgl_entropy_bench.load.judge.measurement import Slo
    from sgl_entropy_bench.load.run.measure import LoadPlan
    from sgl_entropy_bench.load.schedule.arrivals import ArrivalLaw
    from sgl_entropy_bench.load.schedule.workload import load_workload

    for name, least in (("num_requests", 2), ("max_tokens", 1), ("processes", 1), ("warmup", 0)):
        _at_least(args, name, least)
    for name in ("timeout", "stall"):
        if not 0 < getattr(args, name) < float("inf"):
            raise ValueError(f"--{name} must be above 0 seconds, found {getattr(args, name)}")
    if not 0 <= args.temperature < float("inf"):
        raise ValueError(f"--temperature must be at least 0, found {args.temperature}")
    ramp = args.num_requests // 10 if args.ramp is None else args.ramp
    if ramp < 0:
        raise ValueError(f"--ramp must be at least 0, found {ramp}")
    for source in args.prompts:
        if not source.startswith("hf:") and not Path(source).is_dir():
            input_file("--prompts", "prompts as JSON Lines, or a folder of such files")(source)
    latency = args.what == "latency"
    if latency and args.arrivals.startswith("trace:"):
        recorded = Path(args.arrivals.removeprefix("trace:")).expanduser()
        input_file("--arrivals", "arrival times, one a line")(str(recorded))
    share = _share(args.stream) if latency else (0, 1)
    return LoadPlan(
        load_workload(args.prompts, args.per_benchmark, args.seed, args.warmup, share),
        Output(args.max_tokens, args.ignore_eos, args.temperature, not args.no_stream),
        args.num_requests,
        ramp,
        args.seed,
        share,
        _time(args.start_at) if latency and args.start_at else None,
        ArrivalLaw.parse(args.arrivals if latency else "poisson"),
        args.processes,
        args.timeout,
        args.stall,
        Slo.parse(args.slo) if args.slo else None,
    )


def _closed_loop(args: argparse.Namespace) -> Act:
    """What runs throughput, capacity or speed. Raises ValueError."""
    from sgl_entropy_bench.load.run import verbs
    from sgl_entropy_bench.load.run.measure import Load

    if args.what == "capacity":
        _at_least(args, "concurrency", 1)
        loads = [Load("capacity", concurrency=args.concurrency)]
    else:
        speed = args.what == "speed"
        counts = [1] if speed else _numbers("--concurrency", args.concurrency, int)
        loads = [Load(f"batch-{count}", concurrency=count) for count in counts]
    return lambda campaign: verbs.at_loads(campaign, loads)


def _open_loop(args: argparse.Namespace, plan: LoadPlan, arms: Sequence[LoadArm]) -> Act:
    """What runs latency. Raises ValueError for flags that exclude each other."""
    from sgl_entropy_bench.load.run import verbs
    from sgl_entropy_bench.load.run.measure import Load

    poisson, trace = plan.law.kind == "poisson", plan.law.kind == "trace"
    if plan.share[1] > 1 and (args.load or args.launch or not poisson):
        raise ValueError(
            "--stream needs --arms, --qps and poisson arrivals: a sum of other streams follows "
            "another law, and each client would start servers and measure a capacity of its own"
        )
    several = len(arms) > 1 or "," in (args.qps or args.load or "")
    if plan.start_at is not None and several:
        raise ValueError("--start-at is for one arm and one load: give one command to each")
    if trace:
        if args.qps or args.load:
            raise ValueError("a trace has its own rate: leave out --qps and --load")
        return lambda campaign: verbs.at_loads(campaign, [Load("trace", rate=1.0)])
    if not args.qps and not args.load:
        raise ValueError("give --qps or --load")
    _at_least(args, "capacity_concurrency", 1)
    if args.dp_size is not None:
        _at_least(args, "dp_size", 1)
    if args.load:
        shares, places = _numbers("--load", args.load, float), args.capacity_concurrency
        return lambda campaign: verbs.at_shares(campaign, shares, places)
    qps = _numbers("--qps", args.qps, float)
    return lambda campaign: verbs.at_rates(campaign, qps, args.dp_size)


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not number.isdigit() or not count.isdigit() or not int(number) < int(count):
        raise ValueError(f"--stream {text}: expected I/N with I from 0 to N - 1")
    return int(number), int(count)


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"--start-at {text}: expected seconds, or 2026-01-31T12:00:00Z") from None
    return moment.astimezone().timestamp()


def _at_least(args: argparse.Namespace, name: str, least: int) -> None:
    value = getattr(args, name)
    if value < least:
        raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, found {value}")


def _numbers(flag: str, text: str, kind: type[N]) -> list[N]:
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < value < float("inf") for value in numbers):
        raise ValueError(f"{flag} {text}: expected numbers above 0, separated by commas")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{flag} {text}: a number twice")
    return numbers


def _after(args: argparse.Namespace) -> int:
    from sgl_entropy_bench.load.page import report

    return report.main(args.what, args.folders, getattr(args, "out", Path()))
