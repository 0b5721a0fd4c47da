"""Kill what a run consists of, at random, and see that nothing is lost.

    python jobs/chaos.py CONFIG [--kills 20] [--runs 4] [--seed 0] [--kinds actor,trainer,...]
        [--tolerance 0] [--json FILE] [dotted.key=value ...]

Starts the run of CONFIG in <run_dir>/chaos/NN, kills its processes by SIGKILL at random moments,
starts it again when it ended, and looks at what it left: every row labelled or rejected exactly
once, every sidecar in step with its corpus shard, labels equal to those of a run that was left in
peace, the exit status true, no process and no file left over. On the cluster that RAY_ADDRESS
names, else on one of four nodes on this machine. Take a small corpus: it is labelled once for each
run and once more, and what an earlier call left there is deleted. The exit status is 0 only if
nothing was found wrong, and something could be struck.

Kinds: actor (of the teacher's or the student's pool), engine (one in a process of its own, as on
GPUs), trainer (a training worker), task (selection and other work over shards), node (a raylet but
the head's), driver (the job itself), store (the space of all object stores, for three seconds).
Processes of other jobs are left alone. But node and store strike all that runs on a node: they are
for a cluster of your own, and refused on one that runs another job.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from llkd.cli import config_of, do_logged, errors_told, in_run_dir, plain_parser


def main() -> None:
    """Disturb, look, and tell."""
    arguments = _parser().parse_args()
    with errors_told():
        config = config_of(arguments.config, arguments.overrides)

    def work(console: Console) -> None:
        from llkd.lab.chaos.bench import Disturbances, run_chaos
        from llkd.lab.chaos.outcome import figures, outcome_table, verdict

        wanted = Disturbances(
            arguments.kills, arguments.runs or -(-arguments.kills // 5), arguments.kinds,
            arguments.seed,
        )  # fmt: skip
        with in_run_dir(config):
            ordeals = run_chaos(config, wanted, arguments.tolerance, console)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(figures(ordeals), indent=2) + "\n")
        console.print(outcome_table(ordeals))
        console.print(verdict(ordeals))

    sys.exit(do_logged("chaos", config, work))


def _parser() -> argparse.ArgumentParser:
    parser = plain_parser("chaos", __doc__)
    parser.add_argument("config", help="a YAML config with a small corpus")
    parser.add_argument("--kills", type=int, default=20, help="disturbances over all runs (20)")
    parser.add_argument("--runs", type=int, help="runs that share them (one for five)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, times and victims (0)")
    parser.add_argument(
        "--kinds",
        type=_kinds,
        default="actor,trainer,task,node,driver,store",
        help="what is killed, by commas (actor,trainer,task,node,driver,store)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="by which log-probabilities may differ (0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="dotted.key=value",
        help="settings that replace the file's",
    )  # fmt: skip
    return parser


def _kinds(text: str) -> list[str]:
    from llkd.lab.chaos.warden import KINDS

    found = text.split(",")
    if unknown := set(found) - set(KINDS):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)}; there are {', '.join(KINDS)}")
    return found


if __name__ == "__main__":
    main()
