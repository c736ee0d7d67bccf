"""What machines say to each other before the first step: descriptions, waiting, agreement."""

import json
import pathlib
import signal
import socket
import threading
import time

import programs
import pytest

from dbl_tf import training
from dbl_tf.training.cluster import Cluster, Machine, wait_for_the_others

MEMBER = pathlib.Path(__file__).parents[1] / "helpers" / "preparing_member.py"


def make_config(workers=("a:1", "b:2"), kind="worker", index=0, **cluster):
    task = {"type": kind, "index": index}
    return {"cluster": {"worker": list(workers), **cluster}, "task": task}


def test_machines_are_read_in_the_order_of_the_description(monkeypatch):
    config = make_config(("a:1", "[::1]:22"), index=1, chief=["c:3"])
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    cluster = Cluster.from_environment()
    assert cluster.own == Machine("worker", 1, "[::1]:22")
    assert cluster.own.host_and_port == ("::1", 22)
    assert {str(machine) for machine in cluster.others} == {"worker 0 (a:1)", "chief 0 (c:3)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "it is not set"),
        ("", "it is not set"),
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "'cluster' is missing"),
        ('"worker"', "'cluster' is missing"),
        ('{"cluster": []}', "'cluster' must be of type dict, got"),
        ('{"cluster": {}, "task": 0}', "'task' must be of type dict, got 0"),
        (json.dumps(make_config(workers=())), "'worker' must be a list of addresses, got"),
        ('{"cluster": {"worker": "a:1"}, "task": {}}', "'worker' must be a list of addresses"),
        (json.dumps(make_config(("a:1", "a:1"))), "two machines have the address a:1"),
        (json.dumps(make_config(("a", "b:1"))), "an address must be HOST:PORT, got 'a'"),
        (json.dumps(make_config(("a:1", 7))), "an address must be HOST:PORT, got 7"),
        (json.dumps(make_config(("a:1", "b:99999"))), "an address must be HOST:PORT"),
        (json.dumps(make_config(("a:1", "b:²"))), "an address must be HOST:PORT"),
        (json.dumps(make_config(ps=["p:1"])), "'cluster' may have chief and worker, and has 'ps'"),
        (json.dumps(make_config(chief=["c:1", "d:1"])), "there may be one chief"),
        (json.dumps(make_config(index=2)), "'task' is 'worker' 2, and 'cluster' has"),
        (json.dumps(make_config(index=-1)), "'task' is 'worker' -1, and"),
        (json.dumps(make_config(index=True)), "'index' must be of type int, got True"),
        (json.dumps(make_config(index="0")), "'index' must be of type int, got '0'"),
        (json.dumps(make_config(kind="evaluator")), "'task' is 'evaluator' 0, and"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"index": 0}}', "'type' is missing"),
    ],
)
def test_a_description_of_another_form_says_what_is_wrong(monkeypatch, text, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="needs TF_CONFIG") as raised:
        training.make_strategy("multi_worker")
    said = str(raised.value)
    assert message in said and '"task": {"type": "worker"' in said and "\n" not in said


def cluster_of(ports, index):
    machines = tuple(Machine("worker", i, f"localhost:{port}") for i, port in enumerate(ports))
    return Cluster(machines, machines[index])


def test_machines_wait_for_the_last_one():
    ports = programs.free_ports(3)
    came = []

    def come(index, delay):
        time.sleep(delay)
        wait_for_the_others(cluster_of(ports, index), seconds=60)
        came.append(index)
        # TensorFlow takes the port then, and answers.
        with socket.create_server(("", ports[index])):
            done.wait(60)

    done = threading.Event()
    threads = [threading.Thread(target=come, args=(i, d)) for i, d in ((0, 0), (1, 0), (2, 1.5))]
    for thread in threads:
        thread.start()
    time.sleep(1)
    assert came == []
    until = time.monotonic() + 60
    while len(came) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(came) == [0, 1, 2]


def test_a_machine_that_does_not_come_is_named():
    ports = programs.free_ports(2)
    with pytest.raises(
        ValueError, match=rf"gave up after 1 s of waiting for .*localhost:{ports[1]}"
    ):
        wait_for_the_others(cluster_of(ports, 0), seconds=1)


def test_a_port_in_use_is_named(monkeypatch):
    (port,) = programs.free_ports(1)
    with (
        socket.create_server(("", port)),
        pytest.raises(ValueError, match=rf"worker 0 \(localhost:{port}\).*does another process"),
    ):
        wait_for_the_others(cluster_of([port], 0))
    monkeypatch.setenv("DBL_TF_CLUSTER_SECONDS", "soon")
    with pytest.raises(ValueError, match="DBL_TF_CLUSTER_SECONDS must be a number of seconds"):
        wait_for_the_others(cluster_of([port], 0))


def test_a_single_machine_has_nobody_to_agree_with():
    with training.preparing_together(training.make_strategy("one_device"), "its data") as own:
        own.describe({"seed": 1})
    assert own.statement == {"seed": "1"}


@pytest.fixture
def prepare(start_cluster):
    """Starts two machines that prepare with settings of their own, and returns what they say."""

    def start(*arguments, until=None):
        members = start_cluster([[MEMBER, *own] for own in arguments])
        if until is not None:  # the last one has said this, and is killed
            programs.wait_until(lambda: until in members[-1].stdout, members)
            members[-1].kill()
        return [(member.wait(), member.stdout + member.stderr) for member in members]

    return start


def test_machines_that_differ_or_are_refused_stop_together(prepare):
    """In one start, three preparations: equal statements, different ones, and an error on one."""
    said = prepare(("1", "0.1", "good"), ("2", "0.1", "bad"))
    for status, text in said:
        assert status == 0, text
        assert "agreed on the first" in text
        assert "--seed: 1 on worker 0 (localhost:" in text and "; 2 on worker 1 (" in text
        assert "--learning_rate" not in text
    assert "refused: no data here" in said[1][1]
    assert "refused: another machine of the cluster does not train. worker 1 (" in said[0][1]
    assert "): no data here" in said[0][1]


def test_a_machine_that_is_killed_while_it_prepares_is_missed(prepare):
    said = prepare(("1", "0.1", "good"), ("1", "0.1", "endless"), until="reading data")
    assert [status for status, _ in said] == [1, -signal.SIGKILL]
    assert "LostWorkerError: another machine of the cluster was lost before the first" in said[0][1]
    assert "/task:1 heartbeat timeout" in said[0][1]
