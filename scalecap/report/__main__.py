"""`scalecap report DIR`: the report of a run."""

import argparse
from pathlib import Path

from scalecap.report.run_page import write_report
from scalecap.run.folder import FolderError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap report", description="Writes report.html, a page to browse a run and label statements."
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the statements sampled for labelling")
    parser.add_argument(
        "--uncertain",
        action="store_true",
        help="label the least certain statements first (finds errors sooner; gives no guarantee)",
    )
    arguments = parser.parse_args()
    try:
        path = write_report(arguments.run, seed=arguments.seed, uncertain=arguments.uncertain)
    except (FolderError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
