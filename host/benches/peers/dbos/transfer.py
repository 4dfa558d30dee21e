"""The saga of `cargo bench --bench sagas` as a DBOS workflow of three steps, on Postgres.

In: address of a database, sagas, in flight. Out: one line of JSON. Each step's result is a row before the next step begins; the
steps themselves do nothing, as ours do. A workflow that does not end as `completed` fails the run.
"""

import asyncio
import json
import sys
import time

from dbos import DBOS, SetWorkflowID


@DBOS.step()
async def debit(transfer: str) -> str:
    return "debited"


@DBOS.step()
async def credit(transfer: str) -> str:
    return "credited"


@DBOS.step()
async def confirm(transfer: str) -> str:
    return "confirmed"


@DBOS.workflow()
async def transfer_money(transfer: str) -> str:
    await debit(transfer)
    await credit(transfer)
    await confirm(transfer)
    return "completed"


async def load(sagas: int, in_flight: int, run: str) -> list[float]:
    latencies: list[float] = []
    numbers = iter(range(sagas))

    async def worker() -> None:
        for number in numbers:
            begun = time.perf_counter()
            with SetWorkflowID(f"{run}-{number}"):
                ended = await transfer_money(f"{run}-{number}")
            assert ended == "completed", ended
            latencies.append((time.perf_counter() - begun) * 1e3)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return latencies


def main() -> None:
    database, sagas, in_flight, run = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    DBOS(config={"name": "transfers", "system_database_url": database, "log_level": "WARNING"})
    DBOS.launch()
    begun = time.perf_counter()
    latencies = sorted(asyncio.run(load(sagas, in_flight, run)))
    seconds = time.perf_counter() - begun
    at = lambda share: latencies[min(int(len(latencies) * share), len(latencies) - 1)]
    assert len(latencies) == sagas, f"{len(latencies)} of {sagas}"
    print(
        json.dumps(
            {
                "sagas": sagas,
                "in_flight": in_flight,
                "per_second": sagas / seconds,
                "p50_ms": at(0.5),
                "p99_ms": at(0.99),
            }
        )
    )
    DBOS.destroy()


if __name__ == "__main__":
    main()
