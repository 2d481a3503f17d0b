"""`scalecap push DIR REPO`: uploads the data set of a finished run, with a card, to the hub.

`--to FOLDER` writes the files to a folder instead.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from scalecap.report.card import card
from scalecap.run.folder import FolderError, Run


class PushError(Exception):
    """The run can't be pushed; the message says how to fix it."""


def write_repository(run: Path, repo: str, to: Path, *, license: str = "unknown", link: bool = False) -> None:
    """Writes the repository's files to the empty folder `to`: `README.md` and `data/train-….parquet`.

    Args:
        link: whether to link shards instead of copying them.

    Raises:
        PushError: the run is not finished, or `to` is not empty.
        OSError: a file can't be written.
    """
    if not any((run / name).exists() for name in ("summary.json", "journal.jsonl")):
        raise PushError(f"expected the folder of a run, got {run}")
    found = Run(run, run.resolve().name)
    shards = sorted((run / "dataset").glob("*.parquet"))
    if found.status != "finished":
        raise PushError(
            f"{run} is not finished ({found.reason or found.status}): resume it with the same command and"
            f" output={run}"
        )
    if not shards:
        raise PushError(f"{run} has no data set: there are no parquet files in {run / 'dataset'}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PushError(f"--to={to} is not empty; expected a new folder")
    try:
        page = card(found, repo, license, pq.read_schema(shards[0]))
    except FolderError as error:
        raise PushError(str(error)) from error
    (to / "data").mkdir(parents=True)
    page.save(to / "README.md")
    for shard in shards:
        if link:
            (to / "data" / shard.name).symlink_to(shard.resolve())
        else:
            shutil.copyfile(shard, to / "data" / shard.name)


def push(run: Path, repo: str, *, private: bool = False, license: str = "unknown") -> str:
    """Uploads card and shards, replacing earlier ones; creates the repository if needed.

    Args:
        private: whether a new repository is private.

    Returns:
        The URL of the data set.

    Raises:
        PushError: the run can't be pushed, or the hub refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder)
        write_repository(run, repo, to, license=license, link=True)
        api = HfApi()
        try:
            url = api.create_repo(repo, private=private or None, repo_type="dataset", exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                repo_type="dataset",
                folder_path=to,
                delete_patterns="data/*.parquet",
                commit_message="Captions by scalecap",
            )
        except LocalTokenNotFoundError as error:
            raise PushError("not logged in to the hub; run `hf auth login`") from error
        except Exception as error:  # network errors differ between versions of huggingface_hub
            raise PushError(f"can't upload to {repo!r}: {error}") from error
    return str(url)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap push",
        description="Pushes the data set of a finished run to the hub, with a card of its models, steps,"
        " prompts, counts, metrics and command. An existing README.md is replaced.",
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("repo", help="name of the data set on the hub: USER/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--license", default="unknown", help="license identifier on the hub, e.g. cc-by-4.0")
    parser.add_argument("--to", type=Path, help="write the files to this folder instead of uploading them")
    arguments = parser.parse_args()
    try:
        validate_repo_id(arguments.repo)
        if arguments.to:
            write_repository(arguments.run, arguments.repo, arguments.to, license=arguments.license)
            print(arguments.to / "README.md")
        else:
            print(push(arguments.run, arguments.repo, private=arguments.private, license=arguments.license))
    except (PushError, HFValidationError, OSError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
