"""Who does which job on a Ray cluster of two machines, and what happens when one of them goes."""

import asyncio
import os
import sys
import time

import pytest
import ray

from many import crew
from many.crew import Crew, Done, Failed, Lost, Progress, Started, connected, places
from ray_machines import Machines

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import a test


@ray.remote(max_restarts=-1, num_cpus=0)
class Echo:
    """Says a job back in capitals after a while, unless the job is one of its orders."""

    async def ready(self) -> str:
        return f"{ray.get_runtime_context().get_node_id()} {os.getpid()}"

    async def work(self, task):
        yield Progress("echo", 1, 2, task)
        if task == "fail":
            yield Failed("as told")
        elif task == "break":
            raise KeyError("broken")
        elif task == "be away":
            raise ConnectionError("away")
        elif task == "die":
            os._exit(1)
        else:
            await asyncio.sleep(0.3)
            yield Done(task.upper())

    async def leave(self) -> None:
        pass


@ray.remote
class Unable:
    async def ready(self):
        raise RuntimeError("no room")

    async def leave(self) -> None:
        pass


@pytest.fixture(scope="module")
def machines():
    """Two with a core each. The last test kills one of them."""
    with Machines() as machines:
        machines.two = [machines.add(), machines.add()]
        with connected(machines.address, "scripts"):
            yield machines


def plain(job, offer, attempt):
    return job


def outcomes(actors, jobs, task_of=plain, retries=1) -> tuple[dict, list]:
    """The last event of every job, and all of them."""
    said = []
    with Crew(actors, said.append) as crew:
        crew.gather(first=300, everyone=300)
        events = list(crew.run(jobs, task_of, retries))
    return {job: event for job, event in events}, [*events, *said]


def test_there_is_an_actor_for_every_core_or_so_many_cores(machines):
    assert places(None, None) == [{"num_cpus": 1}] * 2
    assert places(3, None) == [{"num_cpus": 1}] * 3
    assert places(1, None) == [{"num_cpus": 1}]  # no machine has two
    assert places(None, 2) == [{"num_cpus": 2}]


def test_all_work_and_each_job_ends_as_it_went(machines):
    jobs = ["a", "b", "c", "fail", "break", "be away", "die"]
    ends, events = outcomes([Echo.options(num_cpus=1).remote(), Echo.options(num_cpus=1).remote()], jobs)
    assert {job: end for job, end in ends.items() if isinstance(end, Done)} == {job: Done(job.upper()) for job in "abc"}
    assert ends["fail"] == Failed("as told") and ends["be away"] == Failed("away")
    assert "KeyError" in ends["break"].reason and isinstance(ends["die"], Failed)
    starts = {job: [e.offer for j, e in events if j == job and isinstance(e, Started)] for job in jobs}
    assert {job: len(offers) for job, offers in starts.items()} == {
        "a": 1, "b": 1, "c": 1, "fail": 1, "break": 1, "be away": 2, "die": 2,
    }  # fmt: skip
    assert len({offer for offers in starts.values() for offer in offers}) == 2
    assert [e for j, e in events if j == "be away" and isinstance(e, Lost)] == [Lost("away")]


def test_an_address_without_a_cluster_is_told_at_once():
    for address in ("127.0.0.1:1", "nowhere:port"):
        with pytest.raises(SystemExit, match=f"Ray cannot be used at {address}"), connected(address):
            pass


def test_an_actor_that_cannot_do_a_job_is_left_out_and_a_job_without_its_files_fails(machines):
    def task_of(job, offer, attempt):
        if job == "unreadable":
            raise PermissionError("not yours")
        if offer == other:
            raise ValueError(f"{offer} is left out")
        return job

    actors = [Echo.remote(), Echo.remote()]
    other, _ = ray.get([actor.ready.remote() for actor in actors])
    ends, events = outcomes([*actors, Unable.options(num_cpus=0).remote()], ["a", "unreadable", "b"], task_of)
    assert ends == {"a": Done("A"), "unreadable": Failed("not yours"), "b": Done("B")}
    assert f"{other} is left out" in events and "A worker is left out: no room" in events


def test_what_runs_is_stopped_when_the_crew_is_left(machines, tmp_path):
    @ray.remote(num_cpus=0)
    class Slow(Echo.__ray_actor_class__):
        async def work(self, task):
            yield Progress("slow", 0, 1, "")
            (tmp_path / "under way").touch()  # past the yield, where Ray would drop it without a word
            try:
                await asyncio.sleep(3600)
            finally:
                (tmp_path / task).touch()
            yield Done(task)

        async def leave(self):
            (tmp_path / "tidy").touch()

    with pytest.raises(KeyboardInterrupt), Crew([Slow.remote()], print) as crew:
        for _, event in crew.run(["a"], plain, 0):
            if isinstance(event, Progress):
                while not (tmp_path / "under way").exists():
                    time.sleep(0.05)
                raise KeyboardInterrupt
    assert {path.name for path in tmp_path.iterdir()} == {"under way", "a", "tidy"}


def test_without_any_actor_what_is_left_fails(machines, monkeypatch):
    monkeypatch.setattr(crew, "PATIENCE", 0.5)
    ends, _ = outcomes([Unable.options(num_cpus=0).remote()], ["a", "b"])
    assert ends == {"a": Failed("No worker is left."), "b": Failed("No worker is left.")}
    with Crew([Echo.options(num_cpus=4).remote()], print) as waits:  # no machine has so many
        assert dict(waits.run(["a"], plain, 0)) == {"a": Failed("No worker is left.")}


def test_a_killed_machine_loses_no_job_and_nobody_waits_for_it(machines):
    jobs, ends, where = list("abcdef"), {}, {}
    with Crew([Echo.options(num_cpus=1).remote(), Echo.options(num_cpus=1).remote()], print) as both:
        both.gather(first=300, everyone=300)
        for job, event in both.run(jobs, plain, 2):
            ends[job] = event
            if isinstance(event, Started):
                where[job] = event.offer
            elif isinstance(event, Progress) and machines.two:
                machines.kill(next(machine for machine in machines.two if machine.node_id in where[job]))
                machines.two.clear()
    assert ends == {job: Done(job.upper()) for job in jobs}
