"""Numbers as LeRobot's data sets keep them: rows as a column of lists in parquet, and their statistics in JSON."""

import numpy as np
import pyarrow as pa


def vectors(rows: np.ndarray) -> pa.Array:
    """Returns float32 [n, d] as a column of n lists."""
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(rows, np.float32).reshape(-1)))


def statistics(values: np.ndarray) -> dict[str, list]:
    """Returns min, max, mean, std, q01, q99 and count of rows [n, d]."""
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    rows = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: row.tolist() for name, row in (rows | {"q01": q01, "q99": q99}).items()} | {"count": [len(values)]}
