"""Deploy the app as a Space on the Hugging Face Hub: its files, the digits model, and the package itself.

    python examples/space/deploy.py NAMESPACE/NAME      # after `hf auth login`
    python examples/space/deploy.py --dry-run FOLDER    # only write the files to a folder

Run it again to update the Space.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError


SPACE = Path(__file__).resolve().parent
REPOSITORY = SPACE.parents[1]


def assemble(folder: str | Path) -> Path:
    """Put everything that the Space needs into a folder, the package and the model included.

    Args:
        folder: A new or empty folder.

    Returns:
        The folder.

    Raises:
        OSError: The folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"`folder` must be new or empty, got {folder}.")
    ignored = shutil.ignore_patterns("__pycache__", "deploy.py", "screenshot.png")
    shutil.copytree(SPACE, folder, ignore=ignored, dirs_exist_ok=True)
    shutil.copytree(SPACE.parent / "mnist", folder / "mnist", ignore=shutil.ignore_patterns("data"))
    shutil.copytree(REPOSITORY / "diffusers_ndc", folder / "diffusers_ndc", ignore=ignored)
    shutil.copy(REPOSITORY / "LICENSE", folder)
    return folder


def deploy(repo_id: str, private: bool = False) -> str:
    """Create the Space if it does not exist, and replace its files.

    Args:
        repo_id: `NAMESPACE/NAME` on the Hub.
        private: Whether a new Space is private.

    Returns:
        The address of the Space.

    Raises:
        HTTPError, OSError, ValueError: The Hub does not answer or rejects the upload.
    """
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        assemble(folder)
        url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            delete_patterns="*",  # files that the app no longer has
            commit_message="The app, the digits model and diffusers-ndc",
        )
    return str(url)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo_id", nargs="?", metavar="NAMESPACE/NAME", help="the Space on the Hub")
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="only write the files to this empty folder")
    args = parser.parse_args()
    if (args.repo_id is None) == (args.dry_run is None):
        parser.error("give either NAMESPACE/NAME or --dry-run FOLDER")
    try:
        print(assemble(args.dry_run) if args.dry_run else deploy(args.repo_id, args.private))
    except (HTTPError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
