"""What mkdocs does with the pages beyond the usual: a hook, named in mkdocs.yml.

The pages are read on GitHub too. There a link to a file of the repository, such as `../examples/quickstart.py`, is a
relative path. In the site it becomes an address on GitHub, and an image that lies outside of `docs` is copied.
Notebooks become pages, with the outputs that are stored in them.
"""

import base64
import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/diffusers-ndc/diffusers-ndc"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)((?:#[^)\s]*)?)\)")
FENCE = re.compile(r"^```(\w+) [^\n]+$", re.MULTILINE)


def on_files(files, config):
    """Add a page for each notebook, and its pictures."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        stem = notebook.src_uri.removesuffix(".ipynb")
        text, pictures = notebook_page(json.loads(notebook.content_string), posixpath.basename(stem))
        files.append(File.generated(config, f"{stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, posixpath.join(posixpath.dirname(stem), name), content=content))
    return files


def notebook_page(notebook: dict, stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = ""
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Picture of the cell above]({name})")
            else:
                printed += "".join(output.get("text") or data["text/plain"])
        if printed:
            parts.append(f"```text\n{printed.strip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_page_markdown(markdown, page, config, files):
    """Links for the site, and fences without the words that are meant for the tests (`not-run="..."`)."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def to_site(match):
        bang, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if "://" in target:
            return match[0]
        if path.startswith("docs/") and not path.startswith("docs/programs/"):
            return f"{bang}[{text}]({re.sub('[.]ipynb$', '.md', target)}{anchor})"
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
