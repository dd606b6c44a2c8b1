"""Work on a Ray cluster: its actors, its queue, its restarts; nothing of scheduling, retrying or transport is written here.

Every actor holds one piece of work, a function that is sent once, and what the function opens (a model) stays open in it. All
machines have to see the same files under the same paths: models, artifacts and the cache.
"""

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tierexport.base.errors import InputError, MachineError
from tierexport.base.libraries import need
from tierexport.base.paths import cache_dir
from tierexport.base.progress import duration, note
from tierexport.base.workers import HERE, Workers, cores

T = TypeVar("T")
R = TypeVar("R")

RETRIES = 3
"""How often an item is done again whose worker died: one that kills every worker has to end."""

CONNECT_SECONDS = 10
"""How long a cluster may take to answer."""

STORE_BYTES = 100_000_000
"""Room for objects of a Ray that is started here: texts and paths are sent, never vectors."""


@contextmanager
def workers_on(where: str | None) -> Iterator[Workers]:
    """The workers that "ray" (on this machine) or "ray:ADDRESS" names; this process for None.

    Raises InputError for another name, MachineError where Ray is not installed or there is none at the address.
    """
    if where is None:
        yield HERE
        return
    kind, _, address = where.partition(":")
    if kind != "ray":
        raise InputError(f"{where!r} names no place to work at: ray, for this machine, or ray:ADDRESS, as in ray:auto")
    with closing(Cluster(address)) as cluster:
        yield cluster


@dataclass
class _Did:
    """How many items a worker has done, and the seconds that they took."""

    items: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Answer(Generic[R]):
    """What a worker has made of an item, and who it is."""

    number: int
    value: R
    worker: str
    seconds: float


class _Holder:
    """Runs in an actor: the work, on this node's cores as far as they are this worker's."""

    def __init__(self, work: bytes) -> None:
        """`work`: pickled, for what it imports first reads how many threads it may use."""
        from ray import cloudpickle

        os.environ["OMP_NUM_THREADS"] = str(max(cores_of_node() // workers_of_node(), 1))
        self._work = cloudpickle.loads(work)
        self._name = f"{socket.gethostname()}, process {os.getpid()}"

    def run(self, number: int, item: Any) -> "_Answer[Any]":
        began = time.perf_counter()
        value = self._work(item)
        return _Answer(number, value, self._name, time.perf_counter() - began)


def cores_of_node() -> int:
    """The cores of this machine; Ray has told libraries to use one."""
    os.environ.pop("OMP_NUM_THREADS", None)
    return cores()


def workers_of_node() -> int:
    """How many workers Ray may start on this machine: the CPUs that `ray start` was given."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["NodeID"] == here)


class Cluster:
    """Workers of a Ray cluster, one for each of its CPUs, or GPUs; they have one piece of work at a time."""

    def __init__(self, address: str) -> None:
        """`address`: where the cluster is, or "" for one on this machine alone. Raises MachineError."""
        need("ray", "ray", "--on ray")
        import ray

        self._own = not ray.is_initialized()
        if self._own:
            _start(address)
        self.count = int(ray.cluster_resources().get("CPU", 0))
        self._work: Callable[[Any], Any] | None = None
        self._pool: Any = None
        self._sent = b""
        self._actors: list[Any] = []
        self._did: dict[str, _Did] = {}

    def map(
        self, work: Callable[[T], R], items: Iterable[T], done: Callable[[], None] = lambda: None, gpu: bool = False
    ) -> list[R]:
        """As `Workers` says; of a single item, which is not worth a worker, it runs here."""
        waiting = iter(items)
        first = list(itertools.islice(waiting, 2))
        if len(first) < 2:
            return HERE.map(work, first, done)
        self._hold(work)
        found: dict[int, R] = {}
        for answer in self._answers(itertools.chain(first, waiting), gpu):
            found[answer.number] = answer.value
            did = self._did.setdefault(answer.worker, _Did())
            did.items, did.seconds = did.items + 1, did.seconds + answer.seconds
            done()
        return [found[number] for number in range(len(found))]

    def close(self) -> None:
        """Let go of the workers, and say what each did."""
        import ray

        self._let_go()
        if self._own:
            ray.shutdown()
        for worker, did in sorted(self._did.items()):
            note(f"worker {worker}: {did.items} {'part' if did.items == 1 else 'parts'} of the work in {duration(did.seconds)}")

    def _hold(self, work: Callable[[Any], Any]) -> None:
        """Let the workers have this work; those that have another end."""
        from ray import cloudpickle
        from ray.util import ActorPool

        if self._work != work:
            self._let_go()
            self._work, self._pool, self._sent = work, ActorPool([]), cloudpickle.dumps(work)

    def _let_go(self) -> None:
        """End the workers, at once: Ray would wait for one that still has an item."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._work, self._pool, self._actors = None, None, []

    def _answers(self, items: Iterable[T], gpu: bool) -> Iterator["_Answer[Any]"]:
        """Answers as they come. Raises what the work raises, MachineError where workers die of an item again and again."""
        import ray

        waiting = enumerate(items)
        try:
            while True:
                while self._has_room(gpu) and (item := next(waiting, None)):
                    self._pool.submit(lambda actor, given: actor.run.remote(*given), item)
                if not self._pool.has_next():
                    return
                yield self._pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            self._let_go()
            raise error.cause from None
        except ray.exceptions.RayError as error:
            self._let_go()
            raise MachineError(f"workers of the cluster died again and again: {str(error).strip().splitlines()[0]}") from error

    def _has_room(self, gpu: bool) -> bool:
        """Whether a worker is free; another one is started where all are busy, as long as the cluster has room."""
        import ray

        if self._pool.has_free():
            return True
        slots = int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))
        if not slots:
            raise MachineError(f"the cluster has no {'GPU' if gpu else 'CPU'} to work on")
        if len(self._actors) == slots:
            return False
        options = {"num_cpus": 1, "num_gpus": int(gpu), "max_restarts": -1, "max_task_retries": RETRIES}
        self._actors.append(ray.remote(_Holder).options(**options).remote(self._sent))
        self._pool.push(self._actors[-1])
        return True


def _start(address: str) -> None:
    """Connect to the cluster at an address, or start one on this machine. Raises MachineError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    shared = {"env_vars": {"TIEREXPORT_CACHE": str(cache_dir().resolve())}}
    quiet: dict[str, Any] = {"runtime_env": shared, "log_to_driver": False, "logging_level": "ERROR"}
    alone = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray would wait for minutes, and say so in its own words
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address or "local", **quiet, **({} if address else alone))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise MachineError(f"there is no Ray cluster at {address or 'this machine'}: {error}") from error
