"""The list of test files in ``docs/verification.md``: every file with what it says of itself."""
import ast
import re

from scripts.pages import ROOT, table

#: Folder to what its files are.
FOLDERS = {"tests": "test_*.py", "tests/hdl": "test_*.py", "tests/formal": "*.py",
           "tb": "bench_*.py"}


def first_sentence(path) -> str:
    """What a file says of itself, up to its first full stop or empty line."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.(?:\s|$)", " ".join(said.split("\n\n")[0].split()))[0]


def _files() -> str:
    parts = []
    for folder, pattern in FOLDERS.items():
        rows = [[f"[`{path.name}`](../{folder}/{path.name})",
                 first_sentence(path).replace("|", "\\|")]
                for path in sorted((ROOT / folder).glob(pattern)) if path.name != "__init__.py"]
        if rows:
            parts.append(f"`{folder}/`\n\n{table(['file', 'what it checks'], rows)}")
    return "\n".join(parts)


def blocks() -> dict:
    """Blocks of ``docs/verification.md``."""
    return {"files": _files()}
