"""What equal texts cost a loss that knows only the pair diagonal, before the first step."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseNegatives:
    """What a row of a batch meets: other rows with its key, which the pair diagonal calls negatives.

    ``share`` of rows meet at least one; ``expected`` is how many a row meets on average; the loss of either
    direction, in nats, cannot fall below ``floor`` = E[ln(1 + others)], because equal texts have equal scores.
    ``rows`` is the size of the batch these numbers hold for: never more than there are samples.
    """

    rows: int
    share: float
    expected: float
    floor: float


def false_negatives(counts: npt.ArrayLike, *, batch_size: int) -> FalseNegatives:
    """Exact for a batch drawn without replacement from rows of which ``counts (K,)`` carry each key.

    A row whose key n of N rows carry meets a hypergeometric number of others: n - 1 marked among N - 1, B - 1 drawn.
    For many rows this is Binomial(B - 1, n / N). Averaged over all rows, so large classes weigh more.
    """
    sizes, times = np.unique(np.asarray(counts, dtype=np.int64), return_counts=True)
    total = int(sizes @ times)
    rows = min(batch_size, total)
    if rows < 2:
        return FalseNegatives(rows=rows, share=0.0, expected=0.0, floor=0.0)
    weights = sizes * times / total
    parts = np.array([_one_size(int(size) - 1, others=total - 1, drawn=rows - 1) for size in sizes])
    share, expected, floor = (float(value) for value in weights @ parts)
    return FalseNegatives(rows=rows, share=share, expected=expected, floor=floor)


def _one_size(marked: int, *, others: int, drawn: int) -> tuple[float, float, float]:
    """P(K > 0), E[K] and E[ln(1 + K)] of the marked among ``drawn`` of ``others`` rows (hypergeometric)."""
    mean = drawn * marked / others
    # Beyond ten deviations nothing is left in double precision; the window keeps a million rows cheap.
    reach = 10 * np.sqrt(mean) + 10
    low = max(0, drawn + marked - others, int(mean - reach))
    high = min(drawn, marked, int(mean + reach))
    k = np.arange(low, high + 1)
    logs = _log_choose(marked, k) + _log_choose(others - marked, drawn - k) - _log_choose(others, np.array(drawn))
    chance = np.exp(logs)
    none = float(chance[0]) if low == 0 else 0.0
    return max(0.0, 1.0 - none), mean, float(chance @ np.log1p(k))


def _log_choose(n: int, k: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """ln of n over k."""
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
