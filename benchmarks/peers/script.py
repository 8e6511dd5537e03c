"""The script that one writes by hand: reads Parquet by row groups, predicts 10,000 rows a call, COPYs the results.

Durability: each call's results are committed in Postgres, fsync on. When it is killed, what was done is in the table,
and nothing but a look at that tells where to go on. It has no queue, no retries and no other user.

`python script.py --model FILES --database URL --processes N` loads the model in each process and prints "ready"; then
each line on its standard input is a Parquet file to predict, answered by a line when all its results are committed.
"""

import argparse
import sys
import warnings
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

CHUNK_ROWS = 10_000


def predict_file(path: str, model: Any, store: Any, part: int, parts: int) -> None:
    """Predicts every `parts`-th row group from `part` on."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        first_row = 0
        for group in range(file.metadata.num_row_groups):
            if group % parts == part:
                predict_group(file.read_row_group(group, use_threads=False), first_row, model, store)
            first_row += file.metadata.row_group(group).num_rows


def predict_group(table: Any, first_row: int, model: Any, store: Any) -> None:
    for at in range(0, table.num_rows, CHUNK_ROWS):
        predictions = model.predict(table.slice(at, CHUNK_ROWS).to_pandas()).tolist()
        store.copy(enumerate(predictions, first_row + at))


def process(channel: Connection, files: str, database: str, part: int, parts: int) -> None:
    """One process: says that it is ready, and then for each file that it is done."""
    warnings.simplefilter("ignore")
    import mlflow
    from peer_store import Store

    model, store = mlflow.pyfunc.load_model(files), Store(database)
    channel.send("ready")
    while path := channel.recv():
        predict_file(path, model, store, part, parts)
        channel.send("done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    context = get_context("spawn")
    channels, processes = [], []
    for part in range(arguments.processes):
        mine, theirs = context.Pipe()
        channels.append(mine)
        options = (theirs, arguments.model, arguments.database, part, arguments.processes)
        processes.append(context.Process(target=process, args=options, daemon=True))
        processes[-1].start()
    print(*{channel.recv() for channel in channels}, flush=True)
    for line in sys.stdin:
        for channel in channels:
            channel.send(line.strip())
        print(*{channel.recv() for channel in channels}, flush=True)
    for channel in channels:
        channel.send("")
    for one in processes:
        one.join()


if __name__ == "__main__":
    main()
