"""A batch's results as DataFrames of one row a row, in the order of its input."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pyfunq.outcomes import BatchPart
from pyfunq.results import with_index

if TYPE_CHECKING:
    import pandas as pd


def as_frame(result: Any) -> "pd.DataFrame":
    """A job's predictions as a frame of one row a row, a column `prediction` where each is one value."""
    import pandas as pd

    rows = with_index(result, pd.RangeIndex(len(result)))
    frame = rows.to_frame("prediction") if isinstance(rows, pd.Series) else rows
    frame.columns = [str(c) for c in frame.columns]
    return frame


class FrameMaker:
    """Makes frames of parts that come in order; rows of a part without a result are nulls in the others' columns."""

    def __init__(self, on_missing: Callable[[BatchPart], None] | None) -> None:
        """Without `on_missing` a part without a result raises its error."""
        self._on_missing = on_missing
        self._like: pd.DataFrame | None = None
        self._rows_before = 0  # of parts without a result, until one with a result shows the columns

    def add(self, part: BatchPart) -> "Iterator[pd.DataFrame]":
        if part.error is not None:
            if self._on_missing is None:
                raise part.error
            self._on_missing(part)
            if self._like is None:
                self._rows_before += part.rows
            else:
                yield _nulls(self._like, part.rows)
            return
        frame = as_frame(part.result)
        self._like = frame.iloc[:0]
        if self._rows_before:
            yield _nulls(self._like, self._rows_before)
            self._rows_before = 0
        yield frame

    def end(self) -> "Iterator[pd.DataFrame]":
        import pandas as pd

        if self._rows_before:
            yield _nulls(pd.DataFrame({"prediction": pd.Series(dtype=object)}), self._rows_before)


def _nulls(like: "pd.DataFrame", rows: int) -> "pd.DataFrame":
    return like.reindex(range(rows))
