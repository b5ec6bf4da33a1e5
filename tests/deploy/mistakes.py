"""Mistakes for validators to find."""


def replaced(text, right, wrong):
    assert right in text
    return text.replace(right, wrong, 1)
