"""Checkpoints by their address: files of the web and of the Hugging Face Hub, downloaded once, checked, and kept.

`huggingface_hub` downloads them, with a progress bar; an interrupted download goes on where it broke off. A file gets
its place in the cache only when it is whole: of the size that the server states, and with its SHA-256 if one is known.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from huggingface_hub import cached_assets_path, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import http_backoff


SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
HUB_FILE = re.compile(r"hf://([^/@\s]+/[^/@\s]+)(?:@((?:refs/(?:pr|convert)/)?[^/\s]+))?/([^\s]+)")
SIZE = re.compile(r"[1-9][0-9]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
FORMS = "https://HOST/FILE, hf://OWNER/REPOSITORY/FILE or hf://OWNER/REPOSITORY@REVISION/FILE"
UNCOMPRESSED = {"Accept-Encoding": "identity"}
"""So that the size that a server states is that of the file."""


@dataclass(frozen=True)
class Location:
    """Where a file lies: on the disk, on the web, or on the Hub.

    Args:
        path: The path, or the address without its fragment.
        scheme: `https`, `http` or `hf`; the empty string for a path.
        name: Name of the file.
        sha256: The SHA-256 that it must have, in hexadecimal digits, or `None`.
        source: The caller's argument and what it holds, for messages.
    """

    path: str
    scheme: str
    name: str
    sha256: str | None
    source: str

    @property
    def suffix(self) -> str:
        """Ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    def beside(self, suffix: str) -> "Location":
        """The file of the same name with another ending, whose SHA-256 is not known.

        Raises:
            ValueError: The address begins with http://, which needs a SHA-256.
        """
        if self.scheme == "http":
            raise ValueError(
                f"{self.source} must begin with https://, got http://: the {suffix} file that belongs to it has no "
                "SHA-256."
            )
        file, mark, query = self.path.partition("?") if self.scheme else (self.path, "", "")
        path = file.removesuffix(self.suffix) + suffix + mark + query
        return Location(path, self.scheme, self.name.removesuffix(self.suffix) + suffix, None, self.source)


def locate(path: str | os.PathLike, argument: str, suffixes: tuple[str, ...]) -> Location:
    """Check a path or an address. Nothing is downloaded yet.

    Args:
        path: A path, or an address as a string: `https://HOST/FILE`, `hf://OWNER/REPOSITORY/FILE` or
            `hf://OWNER/REPOSITORY@REVISION/FILE`, each with `#sha256=DIGITS` at its end if the file must have
            this SHA-256, which `http://HOST/FILE` needs.
        argument: Name of the caller's argument, for messages.
        suffixes: Endings that the name may have.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The address has another form, or the name another ending.
    """
    match = SCHEME.match(path) if isinstance(path, str) else None
    if match is None:
        file = Path(path)
        location = Location(str(file), "", file.name, None, f"`{argument}` ('{file}')")
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"{location.source} must be a file that ends in one of {suffixes}, got a path that does not exist."
            )
    else:
        location = read_address(str(path), match[1].lower(), argument)
    if location.suffix not in suffixes:
        raise ValueError(f"{location.source} must end in one of {suffixes}, got '{location.suffix}'.")
    return location


def read_address(address: str, scheme: str, argument: str) -> Location:
    """Read an address.

    Raises:
        ValueError: It has another form than `FORMS`, or needs a SHA-256.
    """
    address, _, fragment = address.partition("#")
    shown = address.partition("?")[0]  # a query may be a signature that gives access
    source = f"`{argument}` ('{shown}')"
    sha256 = fragment.removeprefix("sha256=").lower() if fragment else None
    if sha256 is not None and (not fragment.startswith("sha256=") or not SHA256.fullmatch(sha256)):
        raise ValueError(
            f"{source} must end in '#sha256=' and 64 hexadecimal digits, or not in '#', got '#{fragment}'."
        )
    if not address.isprintable() or " " in address:
        raise ValueError(f"{source} must have no spaces and control characters, got {shown!r}.")
    if scheme == "hf":
        match = HUB_FILE.fullmatch(address)
        if match is None or ".." in match[3].split("/"):
            raise ValueError(f"{source} must have the form {FORMS}, got '{shown}'.")
        return Location(address, scheme, PurePosixPath(match[3]).name, sha256, source)
    if scheme not in ("https", "http") or not has_host(address):
        raise ValueError(f"{source} must be a path, or an address of the form {FORMS}, got '{shown}'.")
    if scheme == "http" and sha256 is None:
        raise ValueError(
            f"{source} must begin with https://, or end in the file's '#sha256=...', got http:// without it: the "
            "file could be changed on its way."
        )
    return Location(address, scheme, unquote(urlsplit(address).path.rpartition("/")[2]), sha256, source)


def has_host(address: str) -> bool:
    """Whether an address of the web names a host."""
    try:
        return bool(urlsplit(address).hostname)
    except ValueError:  # for example a bracket that is not closed
        return False


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """A file on the disk, downloaded before if it is somewhere else.

    A download without a known SHA-256 leaves the cache again if the body raises a `ValueError`, as it does for a file
    that cannot be read: the next try gets it anew.

    Args:
        location: Where it lies.

    Raises:
        FileNotFoundError: The server has no such file.
        OSError: It cannot be downloaded.
        ValueError: It has another SHA-256 than it must.
    """
    if not location.scheme:
        yield Path(location.path)
        return
    file, verified = download_from_hub(location) if location.scheme == "hf" else download_from_web(location)
    try:
        yield file
    except ValueError:
        if not verified:
            remove(file)
        raise


def download_from_hub(location: Location) -> tuple[Path, bool]:
    """A file of the Hub in the Hub's cache, and whether its SHA-256 is known and checked.

    The Hub states the hash of each large file.
    """
    match = HUB_FILE.fullmatch(location.path)
    assert match is not None  # `read_address` has made sure
    repo_id, revision, name = match.groups()
    try:
        file = Path(hf_hub_download(repo_id, name, revision=unquote(revision) if revision else None))
    except LocalEntryNotFoundError as error:
        raise not_downloaded(location, error) from error
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(f"{location.source} must be a file of the Hub, got none there ({error}).") from error
    except HFValidationError as error:
        raise ValueError(f"{location.source} must have the form {FORMS}, got another one ({error}).") from error
    except Exception as error:  # the classes of the HTTP library belong to huggingface_hub, and change with it
        raise not_downloaded(location, error) from error
    blob = file.resolve().name  # the Hub's cache names a large file by its hash
    sha256 = location.sha256 or (blob if SHA256.fullmatch(blob) else None)
    check_sha256(location, file, sha256)
    return file, sha256 is not None


def download_from_web(location: Location) -> tuple[Path, bool]:
    """A file of the web in the folder that the Hub's cache has for other files, and whether its SHA-256 is checked."""
    key = hashlib.sha256(f"{location.path}#{location.sha256}".encode()).hexdigest()[:32]
    folder = cached_assets_path("diffusers_ndc", "checkpoints", key, assets_dir=constants.HF_ASSETS_CACHE)
    file = folder / f"checkpoint{location.suffix}"
    with FileLock(folder / "lock"):  # processes of one run ask for it at the same time
        if not file.is_file():
            partial = fetch(location, folder)
            check_sha256(location, partial, location.sha256)
            os.replace(partial, file)
        else:
            check_sha256(location, file, location.sha256)
    return file, location.sha256 is not None


def fetch(location: Location, folder: Path) -> Path:
    """Download a file of the web, or the rest of it.

    Args:
        location: Where it lies.
        folder: Folder for what is downloaded of it. A part of another version of the file is removed there.

    Returns:
        A file with the ending `.incomplete`, of the size that the server states.

    Raises:
        FileNotFoundError: The server has no such file.
        OSError: It cannot be downloaded, or the server does not state its size.
    """
    try:
        head = http_backoff(
            "HEAD",
            location.path,
            max_retries=2,
            retry_on_status_codes=(),
            headers=UNCOMPRESSED,
            follow_redirects=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except Exception as error:  # the classes of the HTTP library belong to huggingface_hub, and change with it
        raise not_downloaded(location, error) from error
    length, version = head.headers.get("Content-Length", ""), head.headers.get("ETag", "")
    if head.status_code in (404, 410):
        raise FileNotFoundError(f"{location.source} must be a file on the web, got the status {head.status_code}.")
    if head.status_code != 200 or not SIZE.fullmatch(length):
        raise OSError(
            f"{location.source} must be a file of a size that its server states, got the status {head.status_code} "
            f"and the size {length or 'none'!r}."
        )
    if location.scheme == "https" and head.url.scheme != "https":
        raise OSError(f"{location.source} must stay with https://, got a redirection to {head.url.scheme}://.")
    headers = dict(UNCOMPRESSED)
    partial = folder / f"{hashlib.sha256(f'{version} {length}'.encode()).hexdigest()[:16]}.incomplete"
    can_resume = version.startswith('"')  # a weak one does not promise the same bytes
    if can_resume:
        headers["If-Range"] = version
    for other in folder.glob("*.incomplete"):
        if other != partial or not can_resume:
            other.unlink()
    try:
        with partial.open("ab") as file:
            http_get(
                location.path,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=int(length),
                displayed_filename=location.name,
            )
    except Exception as error:
        if partial.stat().st_size >= int(length):  # no beginning of what was announced
            partial.unlink()
        raise not_downloaded(location, error) from error
    return partial


def not_downloaded(location: Location, error: Exception) -> OSError:
    """The error for a file that is not reached, or breaks off."""
    reason = str(error).partition("\n")[0]
    return OSError(
        f"{location.source} must be a file that can be downloaded, got an error ({type(error).__name__}: {reason})."
    )


def check_sha256(location: Location, file: Path, expected: str | None) -> None:
    """Raise a `ValueError`, and remove the file, unless it has a SHA-256. `None`: none is known."""
    if expected is None:
        return
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    actual = digest.hexdigest()
    if actual != expected:
        remove(file)
        raise ValueError(
            f"{location.source} must have the SHA-256 {expected}, got a file with {actual}. It has been removed."
        )


def remove(file: Path) -> None:
    """Remove a file of the cache, and what it links to."""
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)
