"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from os import PathLike
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | PathLike[str]) -> Iterator[Path]:
    """A name in the folder of `path` to write to. The end of the block makes it `path`, in place of a file that is
    there, of which it takes the mode; a block that raises leaves `path` as it was, and nothing else. Links are
    followed; a device or a pipe is written to itself. OSError, of the block as well, names `path`."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    # Of the same ending, which tells some writers what to write.
    temporary = target.with_name(f".{target.stem[:100]}-{secrets.token_hex(4)}{target.suffix}")
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
