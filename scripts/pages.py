"""Documentation that is made from the sources: ``python -m scripts.pages [--check]``.

Whole files come from a function each (`FILES`). Other pages hold blocks between markers::

    <!-- generated: scripts/measure.py results -->
    ...
    <!-- end generated -->

whose text comes from ``blocks()`` of the module named, by the name behind it. ``--check`` writes
nothing and exits with 1 if a file differs; ``tests/test_docs.py`` does the same. Blocks that begin
with ``measured:`` hold wall-clock figures: only ``scripts/measure.py --speed`` writes them.
"""
import argparse
import importlib
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: Whole files, with the module whose ``page()`` is their text.
FILES = {"docs/isa.md": "scripts.isa_page", "docs/machine.svg": "scripts.draw_machine",
         "docs/layer.svg": "scripts.walkthrough"}
#: Pages with blocks.
PAGES = ("README.md", "docs/architecture.md", "docs/numerics.md", "docs/verification.md")
_BLOCK = re.compile(r"(<!-- (generated|measured): (scripts/\w+\.py) (\w+) -->\n)(.*?)"
                    r"(<!-- end \2 -->)", re.DOTALL)


class Stale(Exception):
    """A block names a generator or a name that does not exist."""


def table(head: list, rows: list) -> str:
    """A Markdown table; numbers are set to the right."""
    def is_number(column):
        cells = [str(row[column]).strip("*% ").replace(",", "") for row in rows]
        return all(re.fullmatch(r"-?[\d.]+|-", cell) for cell in cells)
    rule = ["---:" if rows and is_number(column) else "---" for column in range(len(head))]
    lines = [head, rule, *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def markers(text: str) -> list:
    """``(kind, script, name)`` of every block of a page."""
    return [match.group(2, 3, 4) for match in _BLOCK.finditer(text)]


def filled(text: str, blocks: dict, kind: str = "generated", only: str | None = None) -> str:
    """A page with its blocks replaced.

    Parameters
    ----------
    blocks : dict of str to function
        Script name to a function that gives its blocks, by name.
    only : str or None
        Replace the blocks of this name alone.
    """
    def replace(match):
        begin, found, script, name, _, end = match.groups()
        if found != kind or script not in blocks or name != (only or name):
            return match.group()
        made = blocks[script]()
        if name not in made:
            raise Stale(f"{script} makes no block {name!r}; it makes {', '.join(made)}")
        return f"{begin}{made[name].rstrip()}\n{end}"
    return _BLOCK.sub(replace, text)


def _lazy(script: str):
    """The blocks of a script, made once."""
    made = {}

    def blocks():
        if not made:
            name = script.removesuffix(".py").replace("/", ".")
            made.update(importlib.import_module(name).blocks())
        return made
    return blocks


def fresh(page: str) -> str:
    """What a page should hold now."""
    if page in FILES:
        return importlib.import_module(FILES[page]).page()
    text = (ROOT / page).read_text(encoding="utf-8")
    scripts = {script for kind, script, _ in markers(text) if kind == "generated"}
    return filled(text, {script: _lazy(script) for script in scripts})


def main(arguments: list | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.pages", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only tell what is out of date")
    parser.add_argument("pages", nargs="*", help="default: all")
    options = parser.parse_args(arguments)
    stale = 0
    for page in options.pages or [*FILES, *PAGES]:
        path, text = ROOT / page, fresh(page)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{page}: {'out of date' if options.check else 'written'}", file=sys.stderr)
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return int(bool(stale and options.check))


if __name__ == "__main__":
    sys.exit(main())
