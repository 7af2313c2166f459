"""The pictures of a folder, by the ways in which a row may name them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

from composir.data.annotations import Entry
from composir.data.images.files import ID_LENGTH, content_id, read_bytes
from composir.data.images.folder import PICTURE_SUFFIXES
from composir.data.own import leaves_folder
from composir.errors import ComposirError

IMAGE_ID = f"[0-9a-f]{{{ID_LENGTH}}}"


class NamedPictures:
    """The pictures of a folder, by the ways in which a row may name them."""

    def __init__(self, images: Path, names: Sequence[str]) -> None:
        self.images, self.home = images, images.resolve()
        self.names = dict.fromkeys(names)

    def find(self, row: Entry, what: str, name: str) -> str | None:
        """Return the name of a picture as the listing has it, or None after adding a problem."""
        plain = str(PurePosixPath(self._from_home(name)))  # ./a.jpg is a.jpg
        if plain in self.names:
            return plain
        if re.fullmatch(IMAGE_ID, plain) and plain in self._names_by_id:
            return self._names_by_id[plain]
        alike = self._names_by_form.get(_form(plain), [])
        if len(alike) == 1:
            return alike[0]
        if alike:
            message = f"{what} {name!r} could be {' or '.join(map(ascii, alike))}, which look alike"
            row.problem(message, "rename one of the two pictures, or write its name as it is on disk")
        elif not name.strip():
            row.problem(f"{what!r} is empty", "write the picture's path below the images folder, or remove the row")
        elif leaves_folder(plain):
            row.problem(f"{what} {name!r} leads out of {self.images}", "write the picture's path below that folder")
        elif os.path.lexists(self.home / plain):
            message = f"{what} {name!r} is there but not taken: hidden, behind a link, or no picture by its name"
            row.problem(message, f"put a copy into {self.images} that ends in {', '.join(PICTURE_SUFFIXES)}")
        else:
            self._not_there(row, what, plain)
        return None

    def _not_there(self, row: Entry, what: str, name: str) -> None:
        folded = _form(name).casefold()
        alike = [other for other in self.names if _form(other).casefold() == folded]
        if alike:
            fix = f"did you mean {alike[0]!r}? names differ by upper and lower case"
            row.problem(f"{what} {name!r} is not in {self.images.name}", fix)
        else:
            row.image_name(what, name, self.names, self.home)

    def _from_home(self, name: str) -> str:
        """Return a whole path as one below the folder, where it leads into it."""
        if not Path(name).is_absolute():
            return name
        try:
            whole = Path(os.path.realpath(Path(name).parent)) / Path(name).name
        except ValueError:  # NUL, or half a surrogate pair
            return name
        return whole.relative_to(self.home).as_posix() if whole.is_relative_to(self.home) else name

    @cached_property
    def _names_by_id(self) -> dict[str, str]:
        """The first name of every content, of pictures that can be read; those that cannot are told elsewhere."""
        names_by_id: dict[str, str] = {}
        for name in self.names:
            with suppress(ComposirError):
                names_by_id.setdefault(content_id(read_bytes(self.images / name)), name)
        return names_by_id

    @cached_property
    def _names_by_form(self) -> dict[str, list[str]]:
        names_by_form: dict[str, list[str]] = {}
        for name in self.names:
            names_by_form.setdefault(_form(name), []).append(name)
        return names_by_form


def _form(name: str) -> str:
    """Return a name with its accents in one form (NFC): macOS writes "é" as two characters, most others as one."""
    return unicodedata.normalize("NFC", name)
