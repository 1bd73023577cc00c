"""Makes a page about a training run: `uv run scripts/report.py RUN_DIR` writes RUN_DIR/report.html."""

import pathlib
import sys

import tyro


def run(run_directory: tyro.conf.Positional[pathlib.Path]) -> int:
    """Writes report.html into a run's directory, <checkpoint_dir>/<recipe>/<exp_name>, also while the run is going.

    The page needs no other file and no network: curves of all metrics, sampled against demonstrated actions, frames,
    checkpoints and config.
    """
    from openpi_b1k.evaluation import run_report  # noqa: PLC0415  # so that --help answers at once

    try:
        path = run_report.write(run_directory)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(run))
