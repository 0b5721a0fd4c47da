"""Inject faults into runs, and check that nothing is lost.

    python jobs/chaos.py CONFIG [--kills 20] [--runs 4] [--seed 0] [--kinds actor,trainer,...]
        [--tolerance 0] [--json FILE] [dotted.key=value ...]

Starts the run of CONFIG in <run_dir>/chaos/NN, kills its processes by SIGKILL at random times,
restarts it when it ended, and checks the result: every row is labelled or rejected exactly once,
every sidecar has the rows of its corpus shard, the labels are those of a run without faults, a
failed start has logged its error, and no process or temporary file is left. Uses the cluster that
RAY_ADDRESS names, else one of four nodes on this machine. Take a small corpus: it is labelled once
per run and once more. The runs of an earlier call are deleted. The exit status is 0 only if no
problem was found and at least one fault found a victim.

Kinds: actor (of the teacher's or the student's pool), engine (in a separate process, as on GPUs),
trainer (a training worker), task (selection and other work over shards), node (a raylet, but not
the head's), driver (the job itself), store (the space of all object stores, for three seconds).
Processes of other jobs are spared. But node and store hit every job on a node: they are refused on
a cluster that runs another job.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from llkd.cli import do_logged, in_run_dir, plain_parser, reported_errors
from llkd.config.load import load_config
from llkd.config.packages import require_packages


def main() -> None:
    """Inject, check, and report."""
    arguments = _parser().parse_intermixed_args()
    with reported_errors():
        config = load_config(arguments.config, arguments.overrides)

    def work(console: Console) -> None:
        from llkd.preflight import require_installed

        require_packages("jobs/chaos.py", "psutil", extra="dev")
        require_installed("run", config)
        from llkd.lab.chaos.harness import FaultPlan, run_chaos
        from llkd.lab.chaos.outcome import figures, outcome_table, verdict

        plan = FaultPlan(
            arguments.kills, arguments.runs or -(-arguments.kills // 5), arguments.kinds,
            arguments.seed,
        )  # fmt: skip
        with in_run_dir(config):
            outcomes = run_chaos(config, plan, arguments.tolerance, console)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(figures(outcomes), indent=2) + "\n")
        console.print(outcome_table(outcomes))
        console.print(verdict(outcomes))

    sys.exit(do_logged("chaos", config, work))


def _parser() -> argparse.ArgumentParser:
    parser = plain_parser("chaos", __doc__)
    parser.add_argument("config", help="a YAML config with a small corpus")
    parser.add_argument("--kills", type=int, default=20, help="faults over all runs (20)")
    parser.add_argument("--runs", type=int, help="runs that share them (one per five faults)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, times and victims (0)")
    parser.add_argument(
        "--kinds",
        type=_kinds,
        default="actor,trainer,task,node,driver,store",
        help="kinds of faults, separated by commas (actor,trainer,task,node,driver,store)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="maximum difference of log-probabilities (0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the outcomes here")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="dotted.key=value",
        help="settings that override those in the file",
    )  # fmt: skip
    return parser


def _kinds(text: str) -> list[str]:
    from llkd.lab.chaos.outcome import KINDS

    found = text.split(",")
    if unknown := set(found) - set(KINDS):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}; there are {', '.join(KINDS)}")
    return found


if __name__ == "__main__":
    main()
