"""Ray Serve's asynchronous inference: two replicas that consume a Redis queue, and the client that asks them.

Durability: a job is a Redis message until it is acknowledged, after its result is another Redis key that is deleted a
day later; nothing is in Postgres. What a killed replica held waits for Redis' visibility timeout.

PEER_BROKER and PEER_MODEL say where Redis and the model's files are. Prints "ready"; then each line on its standard
input is a request in JSON, {"rows": [[20 numbers], ...], "callers": N}, where 0 callers means all rows at once; it is
answered by {"seconds", "predictions", "latencies"}.
"""

import itertools
import json
import os
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

COLUMNS = [f"f{i}" for i in range(20)]
REPLICAS = 2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.001, 0.02
GIVE_UP_SECONDS = 300.0
CONFIG = TaskProcessorConfig(
    queue_name="peer",
    adapter_config=CeleryAdapterConfig(broker_url=os.environ["PEER_BROKER"], backend_url=os.environ["PEER_BROKER"]),
    max_retries=3,
)


@serve.deployment(num_replicas=REPLICAS, max_ongoing_requests=5, ray_actor_options={"num_cpus": 0.5})
@task_consumer(task_processor_config=CONFIG)
class Consumer:
    def __init__(self, files: str) -> None:
        import mlflow
        import pandas as pd

        warnings.simplefilter("ignore")
        self.frame = pd.DataFrame
        self.model = mlflow.pyfunc.load_model(files)

    @task_handler(name="predict")
    def predict(self, row: list[float]) -> int:
        return int(self.model.predict(self.frame([row], columns=COLUMNS))[0])


class Client:
    def __init__(self) -> None:
        self.adapter = instantiate_adapter_from_config(task_processor_config=CONFIG)

    def submit(self, row: list[float]) -> str:
        task: str = self.adapter.enqueue_task_sync(task_name="predict", args=[row]).id
        return task

    def result(self, task: str) -> int:
        """There is no waiting for a task: it is asked for, again after a pause that doubles."""
        pause, deadline = FIRST_PAUSE_SECONDS, time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < deadline:
            found = self.adapter.get_task_status_sync(task)
            # Ray reads the result before the status: one that came in between is not there yet.
            if found.status == "SUCCESS" and found.result is not None:
                return int(found.result)
            if found.status == "FAILURE":
                raise SystemExit(f"a task failed: {found.result}")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise SystemExit("a task has no result")

    def all_at_once(self, rows: list[list[float]]) -> dict[str, Any]:
        """Asking for results costs the replicas time, so the clock stops with the last few: they are taken in order."""
        begun = time.perf_counter()
        tasks = [self.submit(row) for row in rows]
        for task in reversed(tasks[-20 * REPLICAS :]):
            self.result(task)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "predictions": [self.result(task) for task in tasks], "latencies": []}

    def one_by_one(self, rows: list[list[float]], callers: int) -> dict[str, Any]:
        predictions, latencies = [0] * len(rows), [0.0] * len(rows)
        numbers, lock = itertools.count(), threading.Lock()

        def call() -> None:
            while True:
                with lock:
                    number = next(numbers)
                if number >= len(rows):
                    return
                begun = time.perf_counter()
                predictions[number] = self.result(self.submit(rows[number]))
                latencies[number] = time.perf_counter() - begun

        begun = time.perf_counter()
        with ThreadPoolExecutor(callers) as threads:
            for future in [threads.submit(call) for _ in range(callers)]:
                future.result()
        return {"seconds": time.perf_counter() - begun, "predictions": predictions, "latencies": latencies}


def main() -> None:
    # What Ray prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"location": "NoServer"})
    serve.run(Consumer.bind(os.environ["PEER_MODEL"]))
    client = Client()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        rows, callers = asked["rows"], asked["callers"]
        done = client.one_by_one(rows, callers) if callers else client.all_at_once(rows)
        print(json.dumps(done), file=answers, flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
