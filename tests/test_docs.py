"""The pages agree with the sources: generated parts, commands, links, figures."""
import os
import re
import shlex

import pytest

from arch import isa
from arch.config import PROFILES, profile
from scripts import cli, isa_page, numerics_page, pages
from scripts.pages import FILES, PAGES, ROOT

TEXTS = ["README.md", "CHANGELOG.md", "models/README.md", "docs/hardware_ci.md", *PAGES[1:],
         *[page for page in FILES if page.endswith(".md")]]
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
#: Commands that end within seconds; the others are only parsed.
FAST = ("info", "asm", "disasm", "run", "compile")
FAST_ENGINES = ("reference", "machine")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands():
    """``(page, words)`` of every line with a prompt, in order."""
    return [(page, shlex.split(line[2:])) for page in TEXTS
            for block in _CONSOLE.findall(text_of(page))
            for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("page", [*FILES, *PAGES])
def test_generated_parts_are_up_to_date(page):
    assert pages.fresh(page) == text_of(page), (
        f"{page} is out of date: run python -m scripts.pages")


def test_blocks_are_closed_and_have_a_known_generator():
    for page in PAGES:
        text = text_of(page)
        opened = len(re.findall("<!-- (?:generated|measured): ", text))
        assert len(pages.markers(text)) == opened, page
        for _, script, _ in pages.markers(text):
            assert (ROOT / script).is_file(), script


def test_a_changed_block_is_found_and_restored():
    text = ("a\n<!-- generated: scripts/numerics_page.py errors -->\nold\n"
            "<!-- end generated -->\nb\n")
    made = pages.filled(text, {"scripts/numerics_page.py": lambda: {"errors": "new\n"}})
    assert made == text.replace("old", "new")
    with pytest.raises(pages.Stale, match="makes no block 'errors'"):
        pages.filled(text, {"scripts/numerics_page.py": lambda: {}})


def test_there_are_commands_to_check():
    words = [words for _, words in commands()]
    assert ["scripts/demo"] in words and ["scripts/test"] in words
    assert sum(command[0] == "scripts/metronome" for command in words) >= 10


@pytest.mark.parametrize("page, words", commands(),
                         ids=[" ".join(words)[:70] for _, words in commands()])
def test_commands_are_known(page, words):
    if words[0] == "scripts/metronome":
        cli._parser().parse_args(words[1:])
    elif words[0] == "python":
        assert words[1] == "-m" and (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
    else:
        script = ROOT / words[0]
        assert script.is_file() and os.access(script, os.X_OK)
        known = script.read_text(encoding="utf-8")
        assert all(word in known for word in words[1:])


def is_fast(words):
    if words[0] != "scripts/metronome" or "--model" in words:
        return False
    engine = words[words.index("--engine") + 1] if "--engine" in words else None
    return words[1] in FAST or words[1] == "generate" and engine in FAST_ENGINES


@pytest.mark.parametrize("page", [pytest.param("README.md", marks=pytest.mark.slow),
                                  "docs/verification.md"])
def test_fast_commands_run_in_order(page, tmp_path, monkeypatch, capsysbinary):
    fast = [words for found, words in commands() if found == page and is_fast(words)]
    assert fast
    for name in ("programs", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for words in fast:
        assert cli.main(words[1:]) == 0, (words, capsysbinary.readouterr().err)


@pytest.mark.parametrize("page", TEXTS)
def test_relative_links_resolve(page):
    found = [link for link in _LINK.findall(text_of(page)) if "://" not in link]
    for link in found:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def anchors(text):
    """Anchors that a page offers: its headings in lower case, punctuation left out."""
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(text)]
    return {heading.replace(" ", "-") for heading in plain}


def test_isa_page_has_every_format_in_every_width():
    text = text_of("docs/isa.md")
    for unit in isa.UNITS.values():
        widths = " / ".join(str(isa.word_bits(unit, config)) for config in PROFILES.values())
        assert f"Word: {widths} bits" in text
        for op in unit.ops:
            assert f"| {op.code} | `{op.name}` |" in text
    # By hand: op 4 bits, wait_param 1, wait 10, so wait is in bits 14 to 5.
    assert "| `wait` | 14:5 | 10 / 10 / 10 / 10 / 10 |" in text
    assert isa.layout(isa.UNITS["drain"], profile("ecp5_85k"))["accumulator"][:2] == (30, 4)
    assert "| `accumulator` | 33:30 | 4 / 5 / 4 / 4 / 6 |" in text


def test_members_reads_several_names_and_continued_lines():
    class Thing:
        """Members
        -------
        A : first,
            continued.
        B, C : second.
        """
    assert isa_page.members(Thing) == {"A": "first, continued.", "B": "second.", "C": "second."}


def test_markup_in_cells_is_escaped():
    assert isa_page.md("a*b `x*y` c|d_e") == "a\\*b `x*y` c\\|d\\_e"


def test_worst_errors_stay_small():
    errors = {name: error for name, (error, _, _) in numerics_page.errors().items()}
    assert errors["EXP2, 8-bit result"] <= 0.51 and errors["EXP2, 10-bit result"] <= 0.55
    assert errors["SILU"] < 6 and errors["GELU"] < 4
    assert errors["RECIP"] < 2**-11 and errors["RSQRT"] < 2**-11
    assert errors["Gumbel noise"] < 4


def test_lines_of_prose_are_short():
    for page in ("README.md", *PAGES[1:], "docs/isa_sketches.md"):
        prose = re.sub("^```.*?^```$|<!-- (generated|measured).*?<!-- end", "", text_of(page),
                       flags=re.MULTILINE | re.DOTALL)
        for line in prose.splitlines():
            assert len(line) <= 110 or line.startswith(("|", "<", "$")), f"{page}: {line}"


@pytest.mark.parametrize("page", TEXTS)
def test_no_page_shows_a_path_of_somebodys_computer(page):
    assert not re.search(r"/(root|home|tmp|Users|work)/", text_of(page))
