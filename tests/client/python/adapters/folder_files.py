"""What a store in a folder has on disk."""

from kvcompress.store._entry import HEADER_SIZE

SIZE = HEADER_SIZE  # of a file, beside its payload


def files(folder):
    return sorted(folder.glob("*/*.kvc"))


def used(folder):
    return sum(path.stat().st_size for path in files(folder))
