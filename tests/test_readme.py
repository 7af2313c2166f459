"""What README.md prints is what its commands print, and the two READMEs say the same."""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from composir.cli import main
from composir.samples import SAMPLES

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README.zh-CN.md"))
RUN = re.compile(r"<!-- run -->\n```(bash|python)\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
SCORE = re.compile(r"\d\.\d{3}")
FENCED = re.compile(r"```(bash|python|text)\n(.*?)```", re.DOTALL)
TIME = re.compile(r"[\d.]+ (m?s)\b")
COMMENT = re.compile(r"\s*#.*")


def printed(language: str, code: str, folder: Path) -> str:
    told = io.StringIO()
    with redirect_stdout(told):
        if language == "python":
            exec(code, {})
        else:
            for line in code.splitlines():
                with pytest.raises(SystemExit) as stop:
                    main(shlex.split(line)[1:])
                assert stop.value.code == 0, line
    return told.getvalue().replace(f"{SAMPLES.resolve()}/", "samples/").replace(f"{folder}/", "")


def test_its_commands_print_what_it_shows(tmp_path, monkeypatch):
    (tmp_path / "samples").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)
    blocks = RUN.findall(ENGLISH.read_text(encoding="utf-8"))
    assert len(blocks) == 2
    for language, code, shown in blocks:
        lines, expected = (TIME.sub(r"0 \1", text) for text in (printed(language, code, tmp_path), shown))
        assert SCORE.sub("", lines) == SCORE.sub("", expected)
        scores = [[float(one) for one in SCORE.findall(text)] for text in (lines, expected)]
        assert scores[0] == pytest.approx(scores[1], abs=0.003)  # another processor rounds otherwise


def test_both_have_the_same_sections_commands_pictures_and_links():
    english, chinese = (
        file.read_text(encoding="utf-8").replace(CHINESE.name, ENGLISH.name).replace("tutorials/zh/", "tutorials/")
        for file in (ENGLISH, CHINESE)
    )
    for pattern in (r"^(#+) ", r"^\|(-+\|)+$", r"\]\(((?!#)[^)]+)\)", r"^\| (`composir [^`]+`)"):
        assert re.findall(pattern, english, re.MULTILINE) == re.findall(pattern, chinese, re.MULTILINE), pattern

    def commands(text):
        return [(kind, COMMENT.sub("", code)) for kind, code in FENCED.findall(text)]

    assert commands(english) == commands(chinese)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE, *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda file: file.name)
def test_no_page_names_a_package_that_is_not_published(page):
    assert not re.search(r"pip install (-U )?'?composir", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=lambda file: file.name)
def test_its_files_are_there(readme):
    links = re.findall(r"\]\(((?!https?:|#)[^)#\s]+)", readme.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
