"""Files that survive a kill: appended lines are whole or the last, replaced files are old or new, never half.

With `sync`, the default, they survive a power cut as well: the call waits for the disk, which takes milliseconds.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Replace `path` by `content`: a reader, or a kill, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with temporary.open("wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if sync:
        sync_folder(path.parent)


def beside(path: Path) -> Path:
    """Return a new empty file in the folder of `path`, for what is to replace it: no other process gets the same one.

    Its rights are those of any new file (a `tempfile` is its owner's alone), so a folder of files can be shared.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def append_lines(path: Path, objects: Iterable[Mapping[str, Any]], sync: bool = True) -> None:
    """Append one JSON object per line; with `sync`, they and all lines before them are on disk. NaN is refused."""
    text = "".join(json.dumps(o, allow_nan=False, ensure_ascii=False) + "\n" for o in objects)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; a last line cut off by a kill is left out (an object cut short never parses).

    An absent file has none.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    if not path.exists():
        return []
    pieces = path.read_text(encoding="utf-8", errors="replace").split("\n")
    # what follows the last newline is nothing, a line cut off, or a whole one an editor took the newline from
    whole = pieces[:-1]
    with contextlib.suppress(json.JSONDecodeError):
        whole += [pieces[-1]] if isinstance(json.loads(pieces[-1]), dict) else []
    try:
        return [json.loads(line) for line in whole]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: a line is damaged ({error.msg}); restore the file from a copy, or start over with fresh=true"
        ) from error


def rewrite_lines(path: Path, objects: Iterable[Mapping[str, Any]], sync: bool = True) -> None:
    """Replace a JSON-lines file by `objects`."""
    write_atomically(path, "".join(json.dumps(o, allow_nan=False, ensure_ascii=False) + "\n" for o in objects), sync)


def sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` are on disk (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
