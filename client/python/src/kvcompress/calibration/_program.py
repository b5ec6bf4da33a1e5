"""What the programs of this folder have in common: types of their flags, and how they end."""

import argparse
import sys
from collections.abc import Callable

from .._errors import KvCompressError


def natural(text: str, least: int = 0) -> int:
    """A flag's integer; argparse tells its user of one below `least`."""
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"at least {least}, not {text}")
    return number


def count(text: str) -> int:
    return natural(text, 1)


def ended(run: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> int:
    """0, 1 after an error that its user can do something about, which is one line on standard error."""
    try:
        run(args)
    except (OSError, ValueError, ImportError, KvCompressError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0
