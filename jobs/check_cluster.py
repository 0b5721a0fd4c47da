"""Check a cluster file against a run's config, before the cluster is started.

    python jobs/check_cluster.py cluster.yaml jobs/configs/cluster-example.yaml [dotted.key=value ...]

Reads a file of Ray's cluster launcher or a RayJob of KubeRay, and a config. Connects to nothing.
"""

import sys

from llkd.cli import plain_parser, reported_errors
from llkd.config.load import load_config
from llkd.errors import LLKDError
from llkd.lab.cluster_files import check


def main() -> None:
    """Print all problems and exit with 2, or with 0 if there are none."""
    parser = plain_parser("check_cluster", __doc__)
    parser.add_argument(
        "cluster", help="cluster.yaml, jobs/clusters/gcp.yaml, jobs/clusters/rayjob.yaml, ..."
    )
    parser.add_argument("config", help="the run's config")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="dotted.key=value",
        help="settings that override those in the file",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    with reported_errors():
        run = load_config(arguments.config, arguments.overrides)
    try:
        check(arguments.cluster, run)
    except LLKDError as error:  # the list of changes that this job is for
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.cluster} fits {arguments.config}.")


if __name__ == "__main__":
    main()
