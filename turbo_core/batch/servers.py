"""Asks the servers of all workers for their node types at the same time."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .answers import BadAnswer
from .node_info import NodeInfos, parse_node_infos
from .worker import Worker, WorkerFailed, WorkerUnusable

GRACE_SECONDS = 20.0  # after the first answer; a slow server does not hold the others


@dataclass
class Known:
    """The node types of each server that answered, by its worker's name, and what went wrong with the others. The
    workers in `unusable` must not be asked again."""

    infos: dict[str, NodeInfos] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    unusable: set[str] = field(default_factory=set)


async def ask_servers(workers: Sequence[Worker], types: Collection[str], only_one: bool, grace: float) -> Known:
    """Starts the workers and asks them for these node types, until all have answered or `grace` seconds after the first
    did. `only_one`: the servers are equal, so that the first answer holds for all."""
    known = Known()

    async def ask(worker: Worker) -> None:
        try:
            await worker.start()
            known.infos[worker.name] = parse_node_infos(await worker.object_info(), types)
        except BadAnswer as error:
            known.failures.append(f"{worker.name} is not a ComfyUI that can be used ({error}).")
            known.unusable.add(worker.name)
        except WorkerFailed as error:
            known.failures.append(str(error))
            if isinstance(error, WorkerUnusable):
                known.unusable.add(worker.name)

    asking = {asyncio.ensure_future(ask(worker)): worker.name for worker in workers}
    waiting = set(asking)
    try:
        while waiting and not known.infos:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        if waiting and not only_one:
            _, waiting = await asyncio.wait(waiting, timeout=grace)
            known.failures += [
                f"{asking[task]} did not say what nodes it has within {grace:.0f} s; the plan is not checked against "
                "it."
                for task in waiting
            ]
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return known
