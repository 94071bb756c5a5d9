"""scripts/train_many.py with two real servers, and with servers that misbehave."""

import json
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from comfyui_perfusion.nodes.host import photos
from comfyui_perfusion.perfusion_core import load_concept
from comfyui_perfusion.perfusion_core.concept import trigger_problem
from PIL import Image

import concept_folders
import stand_ins
import train_many
from comfyui import REPO, Server, override
from draw_photos import draw_photos
from fake_comfyui import FakeComfyUI, save_workflow

SMALL = {"resolution": 64, "batch_size": 1, "accumulation": 1, "previews": ""}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers with the same checkpoint. The last test ends the second."""
    both = [Server(tmp_path_factory.mktemp(name)) for name in ("first", "second")]
    for server in both:
        stand_ins.add_checkpoint(server.base)
    with ThreadPoolExecutor() as starting:
        list(starting.map(Server.__enter__, both))
    yield both
    for server in both:
        server.__exit__()


@pytest.fixture(scope="module")
def workflow(servers, tmp_path_factory):
    """The shipped one in API format, made small."""
    prompt = servers[0].to_prompt(json.loads((REPO / "workflows" / "perfusion_train.json").read_text()))
    override(prompt, "PerfusionCovariance", captions="a toy\na photo of a bear\nthe sea at night\ntwo red cars")
    override(prompt, "PerfusionTrainConcept", **SMALL)
    path = tmp_path_factory.mktemp("workflow") / "small.json"
    path.write_text(json.dumps(prompt))
    return path


@pytest.fixture
def run(servers, workflow, capsys):
    """run(folder, *options) -> (exit code, what it printed)"""

    def call(folder: Path, *options: str) -> tuple[int, str]:
        addresses = [part for server in servers for part in ("--server", server.address)]
        code = train_many.main([str(folder), *addresses, "--workflow", str(workflow), "--superclass", "toy", *options])
        return code, capsys.readouterr().out

    return call


@pytest.fixture
def ctrl_c():
    """Works as on a terminal, also where the tests run in the background."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


def concept_folder(root: Path, name: str, **settings: object) -> Path:
    draw_photos(root / name, count=1, size=64, seed=len(name))
    if settings:
        (root / name / "concept.json").write_text(json.dumps(settings))
    return root / name


def saved(server: Server, name: str) -> Path:
    return server.base / "models" / "perfusion" / f"{name}.safetensors"


def rows(printed: str) -> dict[str, list[str]]:
    """The table's cells by concept."""
    lines = printed[printed.index("concept  ") :].splitlines()[1:-1]
    return {line.split("  ")[0]: re.split(r"\s{2,}", line) for line in lines}


def test_two_servers_share_the_concepts_and_a_broken_photo_is_told_and_not_tried_again(tmp_path, servers, run):
    folder = tmp_path / "concepts"
    concept_folder(folder, "my bear")
    concept_folder(folder, "second", trigger="<other>", superclass="bear", steps=1)
    (concept_folder(folder, "third") / "0.txt").write_text("<third> on a shelf")
    broken = concept_folder(folder, "a broken one") / "0 <b>.png"
    broken.write_bytes(b"not a picture")
    code, printed = run(folder, "--steps", "2")
    assert code == 1
    table = rows(printed)
    assert {name: row[1] for name, row in table.items()} == {
        "a broken one": "failed", "my bear": "trained", "second": "trained", "third": "trained",
    }  # fmt: skip
    assert {row[2] for row in table.values()} == {server.address for server in servers}
    assert table["my bear"][3] == "2 of 2" and table["second"][3] == "1 of 1"
    assert re.fullmatch(r"0\.\d+ to 0\.\d+", table["third"][5])
    assert "PerfusionLoadPhotos (2) failed: ValueError: 0 <b>.png is not a picture" in table["a broken one"][-1]
    assert "Traceback" not in printed and "File " not in printed
    assert printed.count("a broken one: to http") == 1
    (bear,) = [saved(server, "my bear") for server in servers if saved(server, "my bear").exists()]
    (second,) = [saved(server, "second") for server in servers if saved(server, "second").exists()]
    assert (load_concept(bear).trigger, load_concept(bear).superclass) == ("<my-bear>", "toy")
    assert (load_concept(second).trigger, load_concept(second).superclass) == ("<other>", "bear")
    assert str(bear) in table["my bear"][-1]
    masks = list((bear.parents[2] / "input" / "perfusion_many").glob("my bear-*/mask/0.png"))
    assert [path.read_bytes() for path in masks] == [(folder / "my bear" / "mask" / "0.png").read_bytes()]
    (caption,) = [path for server in servers for path in server.base.glob("input/perfusion_many/third-*/0.txt")]
    assert caption.read_text() == "<third> on a shelf"

    output = tmp_path / "concepts-trained"
    assert "2 steps on 1 photos" in (output / "third" / "report.txt").read_text()
    (curve,) = (output / "third").glob("loss-curve-*.png")
    assert Image.open(curve).size == (720, 400)
    page = (output / "index.html").read_text()
    kept = sorted(path.relative_to(output).as_posix() for path in output.glob("*/*.png"))
    assert page.count("<img src='data:image/jpeg;base64,") == 3 + len(kept)  # with the first photos that can be read
    assert not re.search(r"(src|href)='(https?:|/|file:)", page)
    assert f"href='my%20bear/{curve.name}'" in page
    assert "0 &lt;b&gt;.png is not a picture" in page and "<b>" not in page

    shutil.rmtree(broken.parent)
    times = {path: path.stat().st_mtime_ns for path in (bear, second)}
    code, printed = run(folder)
    assert code == 0
    assert [row[1] for row in rows(printed).values()] == ["skipped"] * 3
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert f"href='third/{curve.name}'" in (output / "index.html").read_text()


def test_ctrl_c_stops_our_prompts(tmp_path, servers, run, ctrl_c):
    for name in ("one", "two", "three"):
        concept_folder(tmp_path / "x", name, steps=5000)

    def press_when_both_run() -> None:
        while not all(server.request("GET", "/queue")["queue_running"] for server in servers):
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_when_both_run, daemon=True).start()
    code, printed = run(tmp_path / "x")
    assert code == 1
    assert sorted(row[1] for row in rows(printed).values()) == ["not started", "stopped", "stopped"]
    for server in servers:
        limit = time.monotonic() + 20
        while any(server.request("GET", "/queue").values()):
            assert time.monotonic() < limit, "the training still runs"
            time.sleep(0.2)
        (entry,) = [e for e in server.request("GET", "/history").values() if "interrupted" in str(e["status"])]
        assert entry["status"]["status_str"] == "error"


def test_a_concept_whose_server_dies_is_trained_on_the_other(tmp_path, servers, run):
    first, second = servers
    for name in ("left", "right"):
        concept_folder(tmp_path / "x", name, steps=2)

    def kill_when_it_runs() -> None:
        while not second.request("GET", "/queue")["queue_running"]:
            time.sleep(0.1)
        second.process.kill()

    threading.Thread(target=kill_when_it_runs, daemon=True).start()
    code, printed = run(tmp_path / "x")
    assert code == 0
    assert {row[2] for row in rows(printed).values()} == {first.address}
    assert f"ComfyUI at {second.address} " in printed
    assert saved(first, "left").exists() and saved(first, "right").exists()


# Servers that misbehave


@pytest.fixture
def fakes(tmp_path, monkeypatch, capsys):
    """fakes(*servers, names=…) -> (exit code, what it printed), with the servers running."""
    monkeypatch.setattr(train_many, "PATIENCE", 0.5)
    save_workflow(tmp_path / "workflow.json")

    def call(*fakes: FakeComfyUI, names=("a", "b"), options=()) -> tuple[int, str]:
        for name in names:
            concept_folder(tmp_path / "x", name)
        addresses = [part for fake in fakes for part in ("--server", fake.address)]
        given = ["--workflow", str(tmp_path / "workflow.json"), "--superclass", "toy", *options]
        code = train_many.main([str(tmp_path / "x"), *addresses, *given])
        return code, capsys.readouterr().out

    return call


async def finish(fake: FakeComfyUI, prompt_id: str) -> None:
    await fake.progress(prompt_id, 4)
    await fake.finish(prompt_id, {"4": {"text": ["a file"]}})


async def forget(fake: FakeComfyUI, prompt_id: str) -> None:
    """As a server that crashes and is started again at once."""
    fake.queue.clear()
    await fake.drop()


def test_a_concept_is_tried_again_only_so_often(fakes):
    with FakeComfyUI(forget) as fake:
        code, printed = fakes(fake, names=["a"], options=["--retries", "2"])
        assert code == 1 and len(fake.posted("/prompt")) == 3
        assert f"failed  {fake.address}" in printed and "went away during the run" in printed
        posts = fake.posted("/prompt")
        # what a lost attempt may have saved is replaced, what it may have left in the queue is taken out
        assert [post["prompt"]["4"]["inputs"]["overwrite"] for post in posts] == [False, True, True]
        assert [post["delete"] for post in fake.posted("/queue")] == [[post["prompt_id"]] for post in posts[:2]]


def test_what_a_server_has_is_skipped_or_replaced(fakes):
    with FakeComfyUI(finish) as first, FakeComfyUI(finish) as second:
        second.concepts = ["b.safetensors", "covariance/a.safetensors"]
        code, printed = fakes(first, second)
        assert code == 0 and f"b: {second.address} has a file already" in printed
        (post,) = first.posted("/prompt") + second.posted("/prompt")
        assert post["prompt"]["4"]["inputs"] == {"concept": ["3", 0], "filename": "a", "overwrite": False}
        assert fakes(first, second, options=["--again"])[0] == 0
        replaced = [post["prompt"]["4"]["inputs"] for post in first.posted("/prompt") + second.posted("/prompt")]
        assert sorted(post["filename"] for post in replaced if post["overwrite"]) == ["a", "b"]


def test_a_server_that_stays_away_is_given_up_and_the_rest_is_told(fakes):
    async def die(fake, prompt_id):
        for path in ("/queue", "/prompt", "/upload/image", "/interrupt"):
            fake.answers[path] = 503
        await fake.drop()

    with FakeComfyUI(die) as fake:
        code, printed = fakes(fake)
        assert code == 1
        assert f"{fake.address} stays away; given up." in printed
        assert printed.count("No server is left.") == 2 and f"{fake.address} answered 503" in printed


def test_a_server_that_is_not_there_at_the_start_is_done_without(fakes):
    with FakeComfyUI(finish) as gone:
        pass
    with FakeComfyUI(finish) as fake:
        code, printed = fakes(fake, gone)
        assert code == 0 and f"ComfyUI at {gone.address} does not answer" in printed
        assert len(fake.posted("/prompt")) == 2


def test_captions_are_carried_where_the_server_takes_them(fakes, tmp_path):
    (concept_folder(tmp_path / "x", "a") / "0.txt").write_text("a <a> on a shelf")
    with FakeComfyUI(finish) as fake:
        fakes(fake, names=["a"])
        folder = fake.posted("/prompt")[0]["prompt"]["2"]["inputs"]["folder"]
        assert fake.posted("/upload/image") == [f"{folder}/0.png", f"{folder}/0.txt", f"{folder}/mask/0.png"]
    with FakeComfyUI(finish) as fake:
        fake.refused_suffix = ".txt"
        code, printed = fakes(fake, names=["a"])
        assert code == 0 and "a: trained without the caption 0.txt" in printed
    with FakeComfyUI(finish) as fake:
        fake.refused_suffix = ".png"
        code, printed = fakes(fake, names=["a"])
        assert code == 1 and "answered 400" in printed and not fake.posted("/prompt")


def test_changed_photos_go_to_another_folder(fakes, tmp_path):
    with FakeComfyUI(finish) as fake:
        fakes(fake, names=["a"])
        Image.new("RGB", (64, 64)).save(tmp_path / "x" / "a" / "1.png")
        fakes(fake, names=["a"])
        folders = [post["prompt"]["2"]["inputs"]["folder"] for post in fake.posted("/prompt")]
        assert len(set(folders)) == 2 and all(folder.startswith("perfusion_many/a-") for folder in folders)


def test_the_checkpoint_is_one_that_every_server_has(fakes):
    with FakeComfyUI(finish, ["b", "c"]) as first, FakeComfyUI(finish, ["c", "d"]) as second:
        code, printed = fakes(first, second)
        assert code == 0 and "Checkpoint: c\n" in printed
        for fake in (first, second):
            assert fake.posted("/prompt")[0]["prompt"]["1"]["inputs"]["ckpt_name"] == "c"
        with pytest.raises(SystemExit, match=r"b is not on every server\. They have:\n.*b, c\n.*c, d"):
            fakes(first, second, options=["--checkpoint", "b"])


# What is wrong before anything starts


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("a", "{", r"  a: concept\.json is not JSON"),
        ("a", "[]", r"  a: concept\.json must be like"),
        ("a", '{"superclass": ["toy"]}', r"  a: concept\.json must be like"),
        ("a", '{"trigger": "<a>"}', r"  a: no superclass\. Write .* or give --superclass"),
        ("covariance", '{"superclass": "toy"}', "  covariance: a concept file cannot have this name"),
        ("import", '{"superclass": "toy"}', "  import: a concept file cannot have this name"),
        ("teddy (2)", '{"superclass": "toy"}', r"  teddy \(2\): the trigger '<teddy-\(2\)>' contains \("),
        ("a", '{"superclass": "toy", "trigger": "my toy"}', "  a: the trigger 'my toy' contains a space"),
        ("a", '{"superclass": "toy", "trigger": " "}', "  a: the trigger is empty"),
        ("a:b", '{"superclass": "toy"}', "  a:b: a concept file cannot have this name"),
        ("a\nb", '{"superclass": "toy"}', "a concept file cannot have this name"),
    ],
)
def test_unusable_concept_folders_are_listed_and_nothing_is_started(tmp_path, name, settings, problem):
    (concept_folder(tmp_path, name) / "concept.json").write_text(settings)
    (tmp_path / "empty").mkdir()
    with FakeComfyUI(finish) as fake, pytest.raises(SystemExit, match="Nothing was started:") as stopped:
        train_many.main([str(tmp_path), "--server", fake.address])
    assert re.search(problem, str(stopped.value)) and "  empty: no photos (.bmp, .jpeg" in str(stopped.value)
    assert not fake.posts


def test_spaces_around_a_trigger_are_taken_off_as_the_training_does(tmp_path):
    (concept_folder(tmp_path, "a") / "concept.json").write_text('{"superclass": "toy", "trigger": " <a> "}')
    assert concept_folders.read_concept(tmp_path / "a", {}).settings["trigger"] == "<a>"


def test_names_of_folders_from_a_mac_become_triggers_that_fire(tmp_path):
    (concept_folder(tmp_path, "kleiner ba\u0308r") / "concept.json").write_text('{"superclass": "toy"}')
    concept = concept_folders.read_concept(tmp_path / "kleiner ba\u0308r", {})
    assert (concept.name, concept.settings["trigger"]) == ("kleiner b\u00e4r", "<kleiner-b\u00e4r>")


def test_a_trigger_is_judged_as_the_training_judges_it():
    for character in map(chr, range(32, 127)):
        known = trigger_problem(f"<a{character}b>") is None
        assert known == (concept_folders.NOT_IN_TRIGGERS.search(character) is None), character
    for character in "\0\u200b\ufeff\xad\u2060\u200f\ud83d":
        assert not f"<a{character}b>".isprintable()
        assert trigger_problem(f"<a{character}b>")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"stpes": 2}, r"training has no setting \['stpes'\]"), ({"images": "x"}, "images"), ({"steps": "2"}, "whole")],
)
def test_a_setting_that_training_does_not_have_is_refused_before_anything_is_queued(fakes, tmp_path, settings, problem):
    concept_folder(tmp_path / "x", "b", **settings)
    with FakeComfyUI(finish) as fake, pytest.raises(SystemExit, match=f"^b: .*{problem}"):
        fakes(fake, names=["a"])
    assert not fake.posts


@pytest.mark.parametrize("text", ["{", "[]", '{"nodes": 3}', '{"last_node_id": 3}', "{}"])
def test_a_file_that_is_no_workflow_is_refused(fakes, tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with FakeComfyUI(finish) as fake, pytest.raises(SystemExit, match=r"is not a workflow|has no Checkpoint"):
        fakes(fake, options=["--workflow", str(path)])


def test_a_folder_without_concepts_or_without_servers_says_so(fakes, tmp_path):
    one = concept_folder(tmp_path / "photos", "one")
    (tmp_path / "empty").mkdir()
    for folder, problem in (
        (tmp_path / "none", "is not a folder"), (tmp_path / "empty", "has no subfolders"), (one, "holds photos itself"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=problem):
            train_many.main([str(folder), "--server", "127.0.0.1:1"])
    with FakeComfyUI(finish) as gone:
        pass
    with pytest.raises(SystemExit, match="No server answers"):
        fakes(gone)


def test_the_kinds_of_photos_are_those_of_the_node():
    assert concept_folders.KINDS == photos._KINDS
