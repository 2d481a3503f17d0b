"""`scalecap push DIR REPO`: the data set of a finished run, with its card, for the hub.

`--to FOLDER` writes what would be uploaded, and uploads nothing.
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
    """It could not be pushed; the message says the mend."""


def lay_out(run: Path, repo: str, to: Path, *, licence: str = "unknown", link: bool = False) -> None:
    """Writes the repository's files in the empty folder `to`: `README.md` and `data/train-….parquet`.

    Args:
        link: links to the shards in place of copies.

    Raises:
        PushError: it is no finished run, or `to` is not empty.
        OSError: it can't be written.
    """
    if not any((run / name).exists() for name in ("summary.json", "journal.jsonl")):
        raise PushError(f"{run} holds no run: give the folder of one")
    found = Run(run, run.resolve().name)
    shards = sorted((run / "dataset").glob("*.parquet"))
    if found.status != "finished":
        raise PushError(
            f"{run} is no finished run ({found.reason or found.status}): the same command with output={run}"
            " goes on"
        )
    if not shards:
        raise PushError(f"{run} has no data set: {run / 'dataset'} holds no parquet files")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PushError(f"{to} is not empty: give a new folder as --to")
    try:
        page = card(found, repo, licence, pq.read_schema(shards[0]))
    except FolderError as error:
        raise PushError(str(error)) from error
    (to / "data").mkdir(parents=True)
    page.save(to / "README.md")
    for shard in shards:
        if link:
            (to / "data" / shard.name).symlink_to(shard.resolve())
        else:
            shutil.copyfile(shard, to / "data" / shard.name)


def push(run: Path, repo: str, *, private: bool = False, licence: str = "unknown") -> str:
    """Makes the repository if there is none, replaces its card and shards; its address.

    `private` holds for a repository that is made now. Raises PushError.
    """
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder)
        lay_out(run, repo, to, licence=licence, link=True)
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
            raise PushError("no one is logged in to the hub: hf auth login") from error
        except Exception as error:  # one without a network differs between versions of the hub's client
            raise PushError(f"the hub took no data set as {repo!r}: {error}") from error
    return str(url)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap push",
        description="Pushes the data set of a finished run to the hub, with a card that tells how it was"
        " made: models, steps and prompts, counts, metrics, the command. A README.md that is there is"
        " replaced.",
    )
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("repo", help="name of the data set on the hub: USER/NAME")
    parser.add_argument("--private", action="store_true", help="makes a new repository private")
    parser.add_argument("--license", default="unknown", help="its identifier on the hub, e.g. cc-by-4.0")
    parser.add_argument("--to", type=Path, help="writes here what would be uploaded, and uploads nothing")
    given = parser.parse_args()
    try:
        validate_repo_id(given.repo)
        if given.to:
            lay_out(given.run, given.repo, given.to, licence=given.license)
            print(given.to / "README.md")
        else:
            print(push(given.run, given.repo, private=given.private, licence=given.license))
    except (PushError, HFValidationError, OSError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
