"""What the held-out images can prove about a candidate: the arithmetic of the accuracy gate, on our own answers.

Only inputs where exactly one of the active model and the candidate is right say anything. With `l` such inputs right
only with the active model and `w` only with the candidate, the evidence of harm is

    e(l, w) = 2^(n+1) / ((n+1) C(n,l)) * P(Bin(n+1, 1/2) <= l),   n = l + w

the sign test mixed uniformly over (1/2, 1]. It starts at 1, and under "not worse" it ever reaches T with a probability
of at most 1/T, however often one looks. e(w, l) is the evidence of a gain. A gate of weight g within a plan that
allows a false abort in 1 of 100 rollouts has T = 1 / (0.01 g).
"""

from math import comb

import numpy as np

WEIGHTS = (1.0, 0.5, 0.2, 0.1, 0.05)
DEVICES = 8
ORDERS = 2000


def e(more, less):
    """Exact (integers until the last division)."""
    n = more + less
    below = sum(comb(n + 1, k) for k in range(more + 1))
    return below / ((n + 1) * comb(n, more))


def threshold(weight):
    return round(1 / (0.01 * weight))


def without_one(right_only_active, right_only_candidate):
    """e(l, w) with the device that says most left out; images are dealt to DEVICES devices in turn."""
    device = np.arange(len(right_only_active)) % DEVICES
    return min(
        e(int(right_only_active[device != out].sum()), int(right_only_candidate[device != out].sum()))
        for out in range(DEVICES)
    )


def images_needed(right_only_active, right_only_candidate, bar, seed=1):
    """(median, 95th percentile) of distinct images until e(l, w) >= bar, over ORDERS random orders of the holdout."""
    random, needed = np.random.Generator(np.random.PCG64(seed)), []
    for _ in range(ORDERS):
        order = random.permutation(len(right_only_active))
        lost, won = right_only_active[order].cumsum(), right_only_candidate[order].cumsum()
        at = next((i + 1 for i in np.flatnonzero(right_only_active[order]) if e(int(lost[i]), int(won[i])) >= bar), None)
        assert at is not None, "the whole holdout does not reach the bar"
        needed.append(at)
    return int(np.median(needed)), int(np.quantile(needed, 0.95))


def devices_in_a_row(bar):
    """How many devices, each slower than its controls, the sign test over devices needs: e(n, 0) >= bar."""
    return next(n for n in range(1, 100) if e(n, 0) >= bar)
