"""Writing files atomically."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file, which replaces the file when the block ends.

    If the block raises, the temporary file is removed and the file stays as it was.

    Args:
        path: The file to write.

    Yields:
        The temporary path, in the same folder, so that renaming it is atomic.

    Raises:
        OSError: The folder cannot be written to.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name beside it, then rename it.

    Raises:
        OSError: The folder cannot be written to; a file that was there before is unchanged.
    """
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
