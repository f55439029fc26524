"""What mkdocs does with the pages beyond the usual: a hook, named in mkdocs.yml.

The pages are read on GitHub too. There a link to a file of the repository, such as `../examples/quickstart.py`, is a
relative path. In the site it becomes an address on GitHub, and an image that lies outside of `docs` is copied.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/diffusers-ndc/diffusers-ndc"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)((?:#[^)\s]*)?)\)")
FENCE = re.compile(r"^```(\w+) [^\n]+$", re.MULTILINE)


def on_page_markdown(markdown, page, config, files):
    """Links for the site, and fences without the words that are meant for the tests (`not-run="..."`)."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def to_site(match):
        bang, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        inside = path.startswith("docs/") and not path.startswith("docs/programs/")
        if "://" in target or target.startswith("mailto:") or inside:
            return match[0]
        if bang:
            return f"![{text}]({_copied(path, page, config, files)})"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({REPOSITORY}/{kind}/main/{path}{anchor})"

    return FENCE.sub(r"```\1", LINK.sub(to_site, markdown))


def _copied(path, page, config, files):
    """Path, from the page, of an image of the repository, which becomes a file of the site."""
    name = posixpath.join("images", path.replace("/", "-"))
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".")
