"""Deploy the app as a Space on the Hugging Face Hub: its files, the digits model, and the package itself.

    python examples/space/deploy.py NAMESPACE/NAME                       # after `hf auth login`
    python examples/space/deploy.py NAMESPACE/NAME --model OWNER/MODEL   # with a model of the Hub, on ZeroGPU
    python examples/space/deploy.py --dry-run FOLDER                     # only write the files to a folder

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

HARDWARE = "suggested_hardware: cpu-basic\n"
ON_ZERO_GPU = "suggested_hardware: zero-a10g\nmodels:\n- {model}\npreload_from_hub:\n- {model}\n"
"""Lines of the front matter for the digits model, and for a model of the Hub."""


def assemble(folder: str | Path, model: str | None = None) -> Path:
    """Put everything that the Space needs into a folder, the package and the model included.

    Args:
        folder: A new or empty folder.
        model: Hub id of a model. The Space then asks for ZeroGPU and loads the model when it is built. Default: the
            digits model, which lies in the folder.

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
    if model is None:
        shutil.copytree(SPACE.parent / "mnist", folder / "mnist", ignore=shutil.ignore_patterns("data"))
    else:
        shutil.rmtree(folder / "digits")
        (folder / "model.txt").write_text(f"{model}\n")
        card = folder / "README.md"
        card.write_text(card.read_text().replace(HARDWARE, ON_ZERO_GPU.format(model=model)))
    shutil.copytree(REPOSITORY / "diffusers_ndc", folder / "diffusers_ndc", ignore=ignored)
    shutil.copy(REPOSITORY / "LICENSE", folder)
    return folder


def deploy(repo_id: str, private: bool = False, model: str | None = None) -> str:
    """Create the Space if it does not exist, and replace its files.

    Args:
        repo_id: `NAMESPACE/NAME` on the Hub.
        private: Whether a new Space is private.
        model: Hub id of a model. Default: the digits model.

    Returns:
        The address of the Space.

    Raises:
        HTTPError, OSError, ValueError: The Hub does not answer or rejects the upload.
    """
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        assemble(folder, model)
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
    parser.add_argument("--model", metavar="OWNER/MODEL", help="a model of the Hub instead of the digits model")
    args = parser.parse_args()
    if (args.repo_id is None) == (args.dry_run is None):
        parser.error("give either NAMESPACE/NAME or --dry-run FOLDER")
    try:
        if args.dry_run:
            print(assemble(args.dry_run, args.model))
        else:
            print(deploy(args.repo_id, args.private, args.model))
    except (HTTPError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
