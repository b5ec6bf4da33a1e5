"""What is put into a store, for those who make payloads without one."""

Piece = bytes | bytearray | memoryview
Payload = Piece | tuple[Piece, ...]  # perhaps in pieces that follow one another in it


class SelfChecked(tuple[Piece, ...]):
    """Pieces of a payload whose reader finds all damage by itself: a store makes no checksum of it."""

    __slots__ = ()
