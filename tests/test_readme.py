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
FENCED = re.compile(r"```(bash|python)\n(.*?)```", re.DOTALL)
TIME = re.compile(r"[\d.]+ (m?s)\b")
COMMENT = re.compile(r"\s*#.*")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "samples").symlink_to(SAMPLES)
    return folder


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


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=lambda file: file.name)
def test_its_commands_print_what_it_shows(readme, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    blocks = RUN.findall(readme.read_text(encoding="utf-8"))
    assert len(blocks) == 2
    for language, code, shown in blocks:
        lines = TIME.sub(r"0 \1", printed(language, code, folder)).splitlines()
        expected = TIME.sub(r"0 \1", shown).splitlines()
        assert [re.sub(r"\d\.\d{3}", "", line) for line in lines] == [
            re.sub(r"\d\.\d{3}", "", line) for line in expected
        ]
        numbers = [[float(one) for one in re.findall(r"\d\.\d{3}", "\n".join(text))] for text in (lines, expected)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.003)  # another processor rounds otherwise


def test_both_have_the_same_sections_commands_pictures_and_links():
    english, chinese = (file.read_text(encoding="utf-8") for file in (ENGLISH, CHINESE))
    for pattern in (r"^(#+) ", r"^\|(-+\|)+$", r"\]\(((?!#)[^)]+)\)", r"^\| `[^|]+` \|"):
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
