"""Files that appear whole or not at all, and paths as a shell reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home(path: Path | str) -> Path:
    """Returns the path with a leading `~/` as the home folder."""
    path = Path(path)
    return path.expanduser() if path.parts[:1] == ("~",) else path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields the file to write in place of `path`, whose name it takes in the end; it goes if writing fails."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
