"""What scripts/comfyui.py makes of servers that lose connections, forget prompts and refuse things."""

import asyncio
import time

import aiohttp
import pytest

import comfyui
from comfyui import Client, RunError
from fake_comfyui import WORKFLOW, FakeComfyUI


def followed(fake: FakeComfyUI, prompt_id: str | None = None) -> tuple[dict, list[float]]:
    """The outputs, and every progress value that came."""
    values = []
    client = Client(fake.address)
    outputs = asyncio.run(client.follow(WORKFLOW, lambda node, value, maximum, text: values.append(value), prompt_id))
    return outputs, values


def test_a_run_goes_on_through_a_lost_connection():
    async def play(fake, prompt_id):
        await fake.progress(prompt_id, 1)
        await fake.drop()
        while not fake.sockets:
            await asyncio.sleep(0.01)
        await fake.progress(prompt_id, 3)
        await fake.finish(prompt_id, {"4": {"text": ["saved"]}})

    with FakeComfyUI(play) as fake:
        assert followed(fake) == ({"4": {"text": ["saved"]}}, [1, 3])
        assert len(fake.posted("/prompt")) == 1


def test_a_run_that_ended_while_nobody_listened_is_found_in_the_history():
    async def play(fake, prompt_id):
        await fake.drop()
        fake.end(prompt_id, {"4": {}})

    with FakeComfyUI(play) as fake:
        assert followed(fake) == ({"4": {}}, [])


def test_an_end_that_was_never_told_is_asked_for(monkeypatch):
    monkeypatch.setattr(comfyui, "SILENCE", 0.1)
    came = []

    async def play(fake, prompt_id):
        while "/queue" not in fake.gets:
            await asyncio.sleep(0.01)
        await fake.progress(prompt_id, 2)
        while not came:
            await asyncio.sleep(0.01)
        fake.end(prompt_id, {"4": {}})

    with FakeComfyUI(play) as fake:
        outputs = asyncio.run(Client(fake.address).follow(WORKFLOW, lambda _, value, *__: came.append(value)))
        assert (outputs, came) == ({"4": {}}, [2])


def test_a_run_may_last_longer_than_any_answer(monkeypatch):
    monkeypatch.setattr(comfyui, "TIMEOUT", aiohttp.ClientTimeout(total=4))

    async def play(fake, prompt_id):
        for value in range(5):
            await asyncio.sleep(1)
            await fake.progress(prompt_id, value)
        await fake.finish(prompt_id)

    with FakeComfyUI(play) as fake:
        assert followed(fake) == ({}, [0, 1, 2, 3, 4])


def test_a_server_that_forgot_the_prompt_counts_as_gone():
    async def play(fake, prompt_id):
        fake.queue.clear()
        await fake.drop()

    with FakeComfyUI(play) as fake, pytest.raises(ConnectionError, match=f"{fake.address} went away during the run"):
        followed(fake)


def test_other_prompts_events_are_not_ours():
    async def play(fake, prompt_id):
        await fake.progress("another", 1)
        await fake.event("executing", prompt_id="another", node=None)
        await fake.progress(prompt_id, 2)
        await fake.finish(prompt_id)

    with FakeComfyUI(play) as fake:
        assert followed(fake) == ({}, [2])


def test_cancel_names_its_prompt_and_no_other():
    with FakeComfyUI(None) as fake:
        asyncio.run(Client(fake.address).cancel("my-prompt"))
        assert fake.posts == [("/queue", {"delete": ["my-prompt"]}), ("/interrupt", {"prompt_id": "my-prompt"})]


def test_a_prompt_of_which_only_a_part_is_valid_is_not_left_running():
    with FakeComfyUI(lambda *_: asyncio.sleep(0)) as fake:
        error = {"message": "Value not in list", "details": "folder: 'x'"}
        fake.node_errors = {"2": {"class_type": "PerfusionLoadPhotos", "errors": [error]}}
        with pytest.raises(RunError, match=r"PerfusionLoadPhotos \(2\): Value not in list: folder: 'x'"):
            followed(fake, "my-prompt")
        assert fake.posted("/queue") == [{"delete": ["my-prompt"]}]


@pytest.mark.parametrize("name", ["a b.png", "größe 50%.png", "<b>.png", 'the "best".png'])
def test_a_file_keeps_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with FakeComfyUI(None) as fake:
        assert Client(fake.address).upload(tmp_path / name, "my photos") == f"my photos/{name}"
        assert fake.posted("/upload/image") == [f"my photos/{name}"]


@pytest.mark.parametrize(("status", "kind"), [(413, RunError), (404, RunError), (502, ConnectionError)])
def test_a_refusal_is_told_from_a_server_that_is_away(status, kind):
    with FakeComfyUI(None) as fake:
        fake.answers["/queue"] = status
        with pytest.raises(kind, match=f"{fake.address} answered {status} .* to /queue"):
            Client(fake.address).request("GET", "/queue")


def test_nobody_at_an_address_is_a_connection_error():
    with FakeComfyUI(None) as fake:
        address = fake.address
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=f"ComfyUI at {address} does not answer"):
        Client(address).object_info()
    with pytest.raises(ConnectionError, match=f"ComfyUI at {address} does not answer"):
        Client(address).run(WORKFLOW)
    assert time.monotonic() - start < 60  # of the 300 that an answer may take
