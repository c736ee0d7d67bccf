"""The machines of a cluster before their first step: who they are, and whether they agree."""

import contextlib
import dataclasses
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from dbl_tf import keras_internals
from dbl_tf.messages import first_few, one_line

TIME_LIMIT_VARIABLE = "DBL_TF_CLUSTER_SECONDS"
_TIME_LIMIT = 600.0
_TASK_TYPES = ("chief", "worker")
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)
_PROBE_SECONDS = 2.0
_NEWS_SECONDS = 15.0
# How long a machine that refuses to train waits for the others to read why.
_SECONDS_TO_BE_READ = 60.0
_TOLD, _READ = "told", "read"


@dataclasses.dataclass(frozen=True)
class Machine:
    """A process of a cluster.

    Attributes:
        kind: "chief" or "worker".
        index: its number among those of its kind.
        address: its host and port, as `TF_CONFIG` has them.
    """

    kind: str
    index: int
    address: str

    def __str__(self) -> str:
        return f"{self.kind} {self.index} ({self.address})"

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The two parts of the address."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All machines that train together, and which of them this is."""

    machines: tuple[Machine, ...]
    own: Machine

    @property
    def others(self) -> tuple[Machine, ...]:
        """The machines but this one."""
        return tuple(machine for machine in self.machines if machine != self.own)

    @property
    def leader(self) -> Machine:
        """The machine that runs TensorFlow's coordination service: the chief, or else worker 0."""
        return min(self.machines, key=lambda machine: (machine.kind != "chief", machine.index))

    @classmethod
    def from_environment(cls) -> "Cluster":
        """Reads `TF_CONFIG`.

        Raises:
            ValueError: it is missing or describes no cluster. The message says what is wrong and
                shows what a right one looks like.
        """
        text = os.environ.get("TF_CONFIG")
        try:
            if not text:
                raise ValueError("it is not set")
            return cls._read(text)
        except ValueError as error:
            raise ValueError(
                "strategy multi_worker needs TF_CONFIG, which names all machines and says which of "
                f"them this is, such as {_EXAMPLE}; {error}"
            ) from None

    @classmethod
    def _read(cls, text: str) -> "Cluster":
        try:
            content = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"it is no JSON: {error}") from None
        cluster, task = (_member(content, name, dict) for name in ("cluster", "task"))
        machines = []
        for kind, addresses in cluster.items():
            if kind not in _TASK_TYPES:
                raise ValueError(
                    f"'cluster' may have {' and '.join(_TASK_TYPES)}, and has {kind!r:.80}"
                )
            if not isinstance(addresses, list) or not addresses:
                raise ValueError(f"{kind!r} must be a list of addresses, got {addresses!r:.80}")
            machines += [Machine(kind, i, _address(a)) for i, a in enumerate(addresses)]
        if sum(machine.kind == "chief" for machine in machines) > 1:
            raise ValueError("there may be one chief")
        addresses = [machine.address for machine in machines]
        if twice := {address for address in addresses if addresses.count(address) > 1}:
            raise ValueError(f"two machines have the address {first_few(sorted(twice))}")
        kind, index = _member(task, "type", str), _member(task, "index", int)
        for machine in machines:
            if (machine.kind, machine.index) == (kind, index):
                return cls(tuple(machines), machine)
        raise ValueError(
            f"'task' is {kind!r:.80} {index}, and 'cluster' has "
            f"{first_few([str(machine) for machine in machines])}"
        )


def _member(content: Any, name: str, kind: type) -> Any:
    if not isinstance(content, dict) or name not in content:
        raise ValueError(f"{name!r} is missing")
    value = content[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name!r} must be of type {kind.__name__}, got {value!r:.80}")
    return value


def _address(text: Any) -> str:
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ValueError(f"an address must be HOST:PORT, got {text!r:.80}")
    return text


def wait_for_the_others(cluster: Cluster, seconds: float | None = None) -> None:
    """Returns once every machine has been there, and says which are awaited.

    TensorFlow would wait for them without a word, for ever where one has been refused, and in a way
    that stops all Python. Each machine listens at its own port until it has reached all others,
    before TensorFlow takes the port.

    Args:
        cluster: the machines.
        seconds: the time limit; by default what the environment variable `DBL_TF_CLUSTER_SECONDS`
            says, or ten minutes.

    Raises:
        ValueError: a machine has not come in time, or another process uses the port of this one.
    """
    limit = _time_limit() if seconds is None else seconds
    _, port = cluster.own.host_and_port
    try:
        listener = socket.create_server(("", port), backlog=len(cluster.machines) + 8)
    except OSError as error:
        raise ValueError(
            f"{cluster.own} of TF_CONFIG is this process, and its port cannot be used "
            f"({error.strerror or error}): does another process with the same index run?"
        ) from None
    began = said = time.monotonic()
    awaited = list(cluster.others)
    with listener:
        while awaited := [machine for machine in awaited if not _answers(machine)]:
            now = time.monotonic()
            names = first_few([str(machine) for machine in awaited])
            if now - began >= limit:
                raise ValueError(
                    f"gave up after {limit:.0f} s of waiting for {names}; start the same command "
                    f"on all machines, and look at what they say ({TIME_LIMIT_VARIABLE} sets the "
                    "time)"
                )
            if now - said >= _NEWS_SECONDS:
                print(f"waiting for {names}", file=sys.stderr, flush=True)
                said = now
            time.sleep(_PROBE_SECONDS / 4)


def _time_limit() -> float:
    text = os.environ.get(TIME_LIMIT_VARIABLE, str(_TIME_LIMIT))
    try:
        limit = float(text)
        if not limit > 0:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{TIME_LIMIT_VARIABLE} must be a number of seconds above 0, got {text!r:.80}"
        ) from None
    return limit


def _answers(machine: Machine) -> bool:
    try:
        with socket.create_connection(machine.host_and_port, timeout=_PROBE_SECONDS):
            return True
    except OSError:
        return False


class LostWorkerError(RuntimeError):
    """Another process of the cluster has ended or cannot be reached."""


@contextlib.contextmanager
def reraise_lost_worker(
    strategy: tf.distribute.Strategy, when: Callable[[], str]
) -> Iterator[None]:
    """Turns the failure of a collective operation into a `LostWorkerError` that says when."""
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.FailedPreconditionError,
    ) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise LostWorkerError(
            f"another machine of the cluster was lost {when()}. Start the same command on all "
            f"machines to continue ({error.message.splitlines()[0]})"
        ) from error


class Preparation:
    """What a machine says of itself to the others before the first step.

    Attributes:
        statement: the values, by name, in which all machines must agree.
    """

    def __init__(self) -> None:
        self.statement: dict[str, str] = {}

    def describe(self, statement: Mapping[str, Any]) -> None:
        """Adds values in which all machines must agree, by the names that messages call them."""
        self.statement |= {name: str(value) for name, value in statement.items()}


@contextlib.contextmanager
def preparing_together(strategy: tf.distribute.Strategy, what: str) -> Iterator[Preparation]:
    """Inside, the machines of a cluster prepare their training; all of them go on, or none.

    What is raised inside on one machine ends all of them. At the end, their statements are
    compared. A single machine has nobody to agree with.

    Args:
        strategy: the strategy of the training.
        what: what is prepared, as in "waiting for worker 1 to prepare {what}". It tells one
            preparation of a process from another.

    Raises:
        ValueError: another machine was refused, and the message says why; or the machines differ.
            The message names everything that differs, with the value of each machine.
        LostWorkerError: another machine cannot be reached.
    """
    preparation = Preparation()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        yield preparation
        return
    cluster, end = Cluster.from_environment(), f"the end of {what}"
    try:
        yield preparation
    except BaseException as error:
        with contextlib.suppress(Exception):  # the error that is raised matters more
            _tell(what, _TOLD, cluster.own, {"refused": one_line(error)})
            _end_together(end, cluster, _SECONDS_TO_BE_READ)
        raise
    with reraise_lost_worker(strategy, lambda: "before the first step"):
        _tell(what, _TOLD, cluster.own, {"statement": preparation.statement})
        answers: dict[Machine, Any] = {cluster.own: {"statement": preparation.statement}}
        for machine in cluster.others:
            news = f"waiting for {machine} to prepare {what}"
            answers[machine] = _heard_at_last(what, machine, cluster, news)
    refused = [f"{m}: {a['refused']}" for m, a in answers.items() if "refused" in a]
    differences = [] if refused else _differences(answers, cluster)
    if refused or differences:
        with contextlib.suppress(tf.errors.OpError):  # what is wrong here matters more
            _end_together(end, cluster)
    if refused:
        raise ValueError(f"another machine of the cluster does not train. {'; '.join(refused)}")
    if differences:
        raise ValueError(
            "the machines of the cluster were not started alike; start the same command, on the "
            "same versions and data, on all of them:\n  " + "\n  ".join(differences)
        )


def _differences(answers: Mapping[Machine, Mapping[str, Any]], cluster: Cluster) -> list[str]:
    statements = {machine: answers[machine]["statement"] for machine in cluster.machines}
    found = []
    for name in dict.fromkeys(name for statement in statements.values() for name in statement):
        by_value: dict[str, list[str]] = {}
        for machine, statement in statements.items():
            by_value.setdefault(statement.get(name, "nothing"), []).append(str(machine))
        if len(by_value) > 1:
            values = (f"{value} on {first_few(machines)}" for value, machines in by_value.items())
            found.append(f"{name}: {'; '.join(values)}")
    return found


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns once every process of the cluster has called it; at once for a single process.

    Call it once, at the end.

    Raises:
        LostWorkerError: another machine cannot be reached.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    with reraise_lost_worker(strategy, lambda: "before it had finished"):
        _end_together("the end", Cluster.from_environment())


def _end_together(what: str, cluster: Cluster, limit: float = math.inf) -> None:
    """Returns once every machine has called it, or has not for a number of seconds.

    A process that ended while another one still works would be taken for a lost one. Nor may it end
    while another still reads what it has sent: so the last words go through the coordination
    service, whose process ends last.
    """
    leader = cluster.leader
    if cluster.own != leader:
        _tell(what, _TOLD, cluster.own, {})
        _heard_at_last(what, leader, cluster, limit=limit)  # it may still evaluate
        # The leader may end as soon as it has this, before it says that it has.
        with contextlib.suppress(tf.errors.OpError):
            _tell(what, _READ, cluster.own, {})
        return
    for machine in cluster.others:
        _heard_at_last(what, machine, cluster, limit=limit)
    _tell(what, _TOLD, leader, {})
    for machine in cluster.others:
        _heard(what, _READ, machine, _SECONDS_TO_BE_READ)


def _key(what: str, kind: str, machine: Machine) -> str:
    return f"dbl_tf/{what}/{kind}/{machine.kind}/{machine.index}"


def _tell(what: str, kind: str, own: Machine, content: Mapping[str, Any]) -> None:
    keras_internals.tell_cluster(_key(what, kind, own), json.dumps(content))


def _heard(what: str, kind: str, machine: Machine, seconds: float) -> dict[str, Any] | None:
    """Returns what a machine has told; None if it has not within the time."""
    text = keras_internals.heard_in_cluster(_key(what, kind, machine), seconds)
    return None if text is None else json.loads(text)


def _heard_at_last(
    what: str,
    machine: Machine,
    cluster: Cluster,
    news: str | None = None,
    limit: float = math.inf,
) -> dict[str, Any]:
    """Waits for what a machine tells, and prints the news meanwhile; nothing after the limit.

    Raises:
        tf.errors.OpError: the machine has ended without a word, or cannot be reached.
    """
    began = said = time.monotonic()
    count = sum(other.kind == machine.kind for other in cluster.machines)
    # Signals are handled between the short waits.
    while (content := _heard(what, _TOLD, machine, _PROBE_SECONDS)) is None:
        keras_internals.check_in_cluster(machine.kind, machine.index, count)
        now = time.monotonic()
        if now - began > limit:
            return {}
        if news is not None and now - said > _NEWS_SECONDS:
            print(news, file=sys.stderr, flush=True)
            said = now
    return content
