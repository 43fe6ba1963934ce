"""The zip archive: equal content gives equal bytes, and the reader trusts no content."""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

# Weights hardly compress, nnU-Net's metrics of many rare labels do so 50-fold; these limits leave
# room for all that is exported and none for a bomb.
_MOST_FILES = 2000
_UNSUSPICIOUS_BYTES = 16 * 2**20
_MOST_EXPANSION = 100
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that zip knows


class ArchiveError(ValueError):
    """An archive that is refused; the message names the file in it and the reason."""


class ArchiveWriter:
    """Writes an archive whose bytes depend on its content only.

    Args:
        path: The file to write.

    Attributes:
        digests: SHA-256 of every file written so far, by name.
    """

    def __init__(self, path: Path) -> None:
        self.digests: dict[str, str] = {}
        self._zip = zipfile.ZipFile(path, "w")

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def add(self, name: str, content: bytes) -> None:
        """Add a file."""
        info = zipfile.ZipInfo(name, _EPOCH)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        self._zip.writestr(info, content)
        self.digests[name] = hashlib.sha256(content).hexdigest()

    def add_json(self, name: str, content: Any) -> None:  # noqa: ANN401 (what JSON can hold)
        """Add a JSON file."""
        self.add(name, (json.dumps(content, indent=2) + "\n").encode())


class Archive:
    """An archive whose names and sizes have been checked.

    Attributes:
        names: The files in it.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._zip = archive
        _check_sizes(archive.infolist(), size, "")
        self.names = _checked_names(archive)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            ArchiveError: It is missing or damaged.
        """
        if name not in self.names:
            raise ArchiveError(f"{name}: missing from the archive")
        try:
            with self._zip.open(name) as file:
                # at most the declared size: more would be a zip bomb
                return file.read(self._zip.getinfo(name).file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ArchiveError(f"{name}: damaged ({error})") from error

    def read_json(self, name: str) -> Any:  # noqa: ANN401 (whatever the file holds)
        """The content of a JSON file.

        Raises:
            ArchiveError: It is missing or damaged.
        """
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise ArchiveError(f"{name}: not readable as JSON ({error})") from error


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an archive for reading.

    Raises:
        ArchiveError: It is no zip archive, or holds a name or a size that is refused.
        OSError: It cannot be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ArchiveError(f"{path}: not a zip archive, or cut short ({error})") from error
    with archive:
        yield Archive(archive, path.stat().st_size)


def check_expansion(content: bytes, name: str) -> None:
    """Refuse a file that is itself a zip archive and would not fit into memory.

    Args:
        content: A checkpoint of torch or an ``.npz``.
        name: Name for messages.

    Raises:
        ArchiveError: It is no zip archive, or expands beyond reason.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ArchiveError(
            f"{name}: not in the zip format of torch and NumPy; a bare pickle can run code and is "
            "not opened"
        ) from error
    _check_sizes(members, len(content), f"{name}: ")


def archive_digest(path: Path) -> str:
    """The SHA-256 of an archive.

    Raises:
        ArchiveError: There is no such file.
        OSError: It cannot be read.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise ArchiveError(f"{path}: {found}; remedy: name the archive that export wrote")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _checked_names(archive: zipfile.ZipFile) -> frozenset[str]:
    members = archive.infolist()
    if len(members) > _MOST_FILES:
        raise ArchiveError(f"{len(members)} files in the archive; at most {_MOST_FILES} are read")
    seen: set[str] = set()
    for member in members:
        _check_name(member)
        if member.filename.casefold() in seen:
            raise ArchiveError(f"{member.filename}: twice in the archive")
        seen.add(member.filename.casefold())
    folders = {str(parent) for name in seen for parent in PurePosixPath(name).parents}
    if both := folders & seen:
        raise ArchiveError(f"{min(both)}: both a file and a folder")
    return frozenset(member.filename for member in members)


def _check_name(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename  # the stored name: zipfile cuts filename at a zero byte
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise ArchiveError(f"{name!r}: an absolute path, which would be written anywhere")
    if ".." in re.split(r"[/\\]", name):
        raise ArchiveError(f"{name!r}: '..' leads out of the folder that it is installed in")
    if str(PurePosixPath(name)) != name or re.search(r"[\\:]", name) or not name.isprintable():
        raise ArchiveError(f"{name!r}: not a plain path of a file")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise ArchiveError(f"{name!r}: a symbolic link or a device, which could lead anywhere")
    if member.flag_bits & 1:
        raise ArchiveError(f"{name!r}: encrypted")


def _check_sizes(members: Sequence[zipfile.ZipInfo], size: int, where: str) -> None:
    """Refuse archives that would fill memory or disk; ``size`` is the true size of the archive."""
    for member in members:
        name = f"{where}{member.filename}"
        # zipfile expands other methods without limit, whatever size is declared
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{name}: neither stored nor deflated, as export writes files")
        if member.file_size > max(_UNSUSPICIOUS_BYTES, _MOST_EXPANSION * member.compress_size):
            raise ArchiveError(
                f"{name}: expands from {member.compress_size} to {member.file_size} bytes, as a "
                "zip bomb does"
            )
    packed = sum(member.compress_size for member in members)
    whole = sum(member.file_size for member in members)
    if packed > size or whole > _UNSUSPICIOUS_BYTES + _MOST_EXPANSION * size:
        raise ArchiveError(
            f"{where}{size} bytes expand from {packed} to {whole} bytes, as a zip bomb does"
        )
