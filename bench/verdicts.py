"""Whether a run met its targets, missed them, or cannot tell."""

import math
import re

from compare import ONCE

# Parts beyond which a machine was not quiet: of its CPU time that others took, or that its host gave to other machines;
# and of the reference, from its lowest reading to its highest.
MOST_TAKEN = 0.05
MOST_SPREAD = 0.3
# Rounds from which the lowest and the highest are left out, so that one that was disturbed excuses no target.
ENOUGH_ROUNDS = 5
ORDER = ("missed", "not judged", "met")


def disturbances(machine):
    """Why figures of a run are not to be trusted much; none of a quiet machine."""
    if machine.get("others", 0) > MOST_TAKEN:
        yield f"other programs took {100 * machine['others']:.0f} % of its CPU time"
    if machine["stolen"] > MOST_TAKEN:
        yield f"its host gave {100 * machine['stolen']:.0f} % of its CPU time to other machines"
    if machine.get("memcpy_spread", 0) > MOST_SPREAD:
        yield f"memcpy's readings lie within {100 * machine['memcpy_spread']:.0f} %, more than {100 * MOST_SPREAD:.0f}"


def judged(target, is_quiet):
    """A target with its verdict, `met`, `missed` or `not judged`, and why it is not judged. It may have `rounds`, the
    value in each round; `most`, above which the value cannot be; and `exact`, where no noise changes the value."""
    doubt = why_not(target, is_quiet)
    if doubt:
        return target | {"verdict": "not judged", "why": doubt}
    return target | {"verdict": "met" if target["met"] else "missed"}


def why_not(target, is_quiet):
    value, most = target["value"], target.get("most", math.inf)
    if not math.isfinite(value) or value > most * (1 + ONCE):
        return "cannot be" + (f" above {most:g}" if most < math.inf else "") + ": what it stands beside was disturbed"
    limit = re.fullmatch(r"at (?:least|most) ([\d.]+)", target["wanted"])
    if limit is None or target.get("exact"):
        return None
    rounds = sorted(target.get("rounds", []))
    if len(rounds) >= ENOUGH_ROUNDS:
        rounds = rounds[1:-1]
    if len(rounds) > 1:
        low, high, says = rounds[0], rounds[-1], "its rounds lie"
    else:
        noise = 0 if is_quiet else ONCE
        low, high = value * (1 - noise), value * (1 + noise)
        says = "measured once on a machine that was not quiet: it may lie"
    within_noise = low < high and low <= float(limit[1]) <= high
    return f"within noise: {says} from {low:.2f} to {high:.2f}" if within_noise else None
