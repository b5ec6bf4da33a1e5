"""How the second decoders refuse what no encoder wrote."""


class DataLoss(Exception):
    """What no encoder wrote."""


def require(condition, what):
    if not condition:
        raise DataLoss(what)
