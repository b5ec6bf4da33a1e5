"""Two runs beside each other: what differs by more than their noise."""

import math

from measurements import OUTSIDE, SIZES

LEAST = 0.05  # a difference of less is none, whatever the noise seems to be
# What a speed that was measured once may be off by, in either run.
ONCE = 0.15


def beside_reference(section, column):
    """(row name to (value, low, high)) of a column, each in units of the section's reference where that has the column,
    so that machines and moments of different speed compare."""
    rows = {row["name"]: row["cells"][column] for row in section["rows"] if column in row["cells"]}
    reference = rows.get(section["reference"], {"value": 1.0})["value"]
    found = {}
    for name, cell in rows.items():
        value = cell["value"] / reference
        low, high = (
            cell[key] / reference if key in cell else value * (1 + sign * ONCE)
            for key, sign in (("low", -1), ("high", 1))
        )
        found[name] = (value, low, high)
    return found


def changes(old, new):
    """Of every cell that both runs have and whose ranges do not meet: section, row, column, old and new value (beside
    the reference of the section), and new / old; the largest change first. Sizes and SNRs have no noise: any change of
    them counts. Differences are left out."""
    before = {section["id"]: section for section in old["sections"]}
    found = []
    for section in new["sections"]:
        if section["id"] not in before:
            continue
        for column in section["columns"]:
            if column in OUTSIDE:
                continue
            exact = column in SIZES
            left, right = (
                beside_reference({**side, "reference": None} if exact else side, column)
                for side in (before[section["id"]], section)
            )
            for name in left.keys() & right.keys():
                (was, was_low, was_high), (is_, is_low, is_high) = left[name], right[name]
                apart = is_low > was_high or is_high < was_low
                if was and (abs(is_ / was - 1) > 1e-6 if exact else apart and abs(is_ / was - 1) > LEAST):
                    found.append(
                        {
                            "section": section["title"],
                            "row": name,
                            "column": column,
                            "old": was,
                            "new": is_,
                            "ratio": is_ / was,
                        }
                    )
    return sorted(found, key=lambda change: -abs(math.log(change["ratio"])))
