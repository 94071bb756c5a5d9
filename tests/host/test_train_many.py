"""scripts/train_many.py on Ray: ComfyUIs of its own on a cluster of two machines, and servers that misbehave."""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest
from comfyui_perfusion.perfusion_core import load_concept
from comfyui_perfusion.perfusion_core.concept import trigger_problem
from PIL import Image

import train_many
from comfyui import REPO
from draw_photos import draw_photos
from fake_comfyui import WORKFLOW, FakeComfyUI, save_workflow
from many import comfyuis, concept_folders, crew
from many.comfy_worker import ComfyWorker, Offer, Task
from many.crew import Progress
from ray_machines import Machines, wait_for_all_servers

QUICK = ("--demo", "--superclass", "bear", "--steps", "2")


@pytest.fixture(scope="module")
def machines():
    """A cluster whose second machine only sees to servers that run elsewhere."""
    with Machines() as machines:
        machines.add()
        yield machines


def concept_folder(root: Path, name: str, **settings: object) -> Path:
    draw_photos(root / name, count=1, size=64, seed=len(name))
    if settings:
        (root / name / "concept.json").write_text(json.dumps(settings))
    return root / name


def rows(printed: str) -> dict[str, list[str]]:
    """The table's cells by concept."""
    lines = printed[printed.index("concept  ") :].splitlines()[1:-1]
    return {line.split("  ")[0]: re.split(r"\s{2,}", line) for line in lines}


# With ComfyUIs of its own


@pytest.fixture
def scratch():
    """For TMPDIR: Ray's sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()  # where the cluster of a test writes its address
        yield folder


def test_a_killed_machine_loses_nothing_and_every_file_arrives(tmp_path, scratch, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", scratch)
    folder, output = tmp_path / "concepts", tmp_path / "concepts-trained"
    concept_folder(folder, "my bear")
    concept_folder(folder, "second", trigger="<other>", superclass="cat", steps=1)
    (concept_folder(folder, "third") / "0.txt").write_text("<third> on a shelf")
    broken = concept_folder(folder, "a broken one") / "0 <b>.png"
    broken.write_bytes(b"not a picture")
    note_down, killed = train_many.note_down, []

    def kill_when_one_trains(concept, event, *rest):
        note_down(concept, event, *rest)
        if isinstance(event, Progress) and event.step == "PerfusionTrainConcept" and not killed:
            machines.kill(two[0])
            killed.append(concept.name)

    monkeypatch.setattr(train_many, "note_down", kill_when_one_trains)
    workflow = json.loads((REPO / "workflows" / "2 Train SD1.5.json").read_text(encoding="utf-8"))
    values = {node["type"]: node.get("widgets_values") for node in workflow["nodes"]}
    values["PerfusionCovariance"][1] = 100  # captions; each machine would encode ten thousand
    values["PerfusionTrainConcept"][12] = "a photo of {}"  # of four previews
    (tmp_path / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    given = ["--workflow", str(tmp_path / "workflow.json"), "--cpus", "1", *QUICK]
    with Machines() as machines:
        two = [machines.add(), machines.add()]
        code = train_many.main([str(folder), "--address", machines.address, *given])
    printed = capsys.readouterr().out
    assert killed and code == 1
    table = rows(printed)
    assert {name: row[1] for name, row in table.items()} == {
        "a broken one": "failed", "my bear": "trained", "second": "trained", "third": "trained",
    }  # fmt: skip
    assert table["my bear"][3] == "2 of 2" and table["second"][3] == "1 of 1"
    assert re.fullmatch(r"0\.\d+ to 0\.\d+", table["third"][5])
    assert "PerfusionLoadPhotos (2) failed: PhotoError: 0 <b>.png is not a picture" in table["a broken one"][-1]
    assert "Traceback" not in printed and "File " not in printed
    # of all that was begun only what ran on the machine that went is begun again
    assert printed.count("a broken one: to ") == 1 + printed.count("a broken one: Its worker or machine went away")

    bear, other = load_concept(output / "my bear.safetensors"), load_concept(output / "second.safetensors")
    assert (bear.trigger, bear.superclass, other.trigger, other.superclass) == ("<my-bear>", "bear", "<other>", "cat")
    assert table["my bear"][-1] == str(output / "my bear.safetensors")
    assert "2 steps on 1 photos" in (output / "third" / "report.txt").read_text()
    (curve,) = (output / "third").glob("loss-curve-*.png")
    assert Image.open(curve).size == (720, 400)
    page = (output / "index.html").read_text()
    kept = sorted(path.relative_to(output).as_posix() for path in output.glob("*/*.png"))
    assert page.count("<img src='data:image/jpeg;base64,") == 3 + len(kept)  # with the first photos that can be read
    assert not re.search(r"(src|href)='(https?:|/|file:)", page)
    assert f"href='my%20bear/{curve.name}'" in page
    assert "0 &lt;b&gt;.png is not a picture" in page and "<b>" not in page


def test_ctrl_c_leaves_no_process_and_no_files_behind(tmp_path, scratch):
    concept_folder(tmp_path / "x", "one", steps=5000)
    concept_folder(tmp_path / "x", "two")
    mark = f"PERFUSION_TEST={uuid.uuid4()}"
    taking_ctrl_c = "env", "--default-signal=INT"  # also where the tests run in the background
    command = [*taking_ctrl_c, sys.executable, REPO / "scripts" / "train_many.py", tmp_path / "x", *QUICK]
    environment = dict([*os.environ.items(), mark.split("="), ("TMPDIR", scratch)])
    with subprocess.Popen(
        [*map(str, command), "--cpus", str(os.cpu_count())],
        env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        try:
            for line in running.stdout:
                if line.startswith("one: to "):
                    break
            assert processes(mark), "this test sees nothing"
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does
            printed = running.stdout.read()
        except BaseException:
            running.kill()
            raise
    assert running.returncode == 1 and "Stopped." in printed
    assert [row[1] for row in rows(printed).values()] == ["stopped", "not started"]
    limit = time.monotonic() + 20
    while left := processes(mark):
        assert time.monotonic() < limit, left
        time.sleep(0.2)
    assert not list(Path(scratch).glob("perfusion-*"))


def processes(mark: str) -> list[str]:
    """The commands of those with this in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text())
        except OSError:  # it has ended, or is not ours
            continue
    return found


# With servers that run, and misbehave


@pytest.fixture
def fakes(tmp_path, machines, capsys, monkeypatch):
    """fakes(*servers, names=…) -> (exit code, what it printed), with the servers running."""
    wait_for_all_servers(monkeypatch)
    save_workflow(tmp_path / "workflow.json")

    def call(*fakes: FakeComfyUI, names=("a", "b"), options=()) -> tuple[int, str]:
        for name in names:
            concept_folder(tmp_path / "x", name)
        addresses = [part for fake in fakes for part in ("--server", fake.address)]
        given = ["--workflow", str(tmp_path / "workflow.json"), "--superclass", "toy", *options]
        code = train_many.main([str(tmp_path / "x"), "--address", machines.address, *addresses, *given])
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
        assert [post["delete"] for post in fake.posted("/queue")][:2] == [[post["prompt_id"]] for post in posts[:2]]


def test_what_is_on_a_server_or_here_is_not_trained_again(fakes, tmp_path):
    output = tmp_path / "x-trained"
    with FakeComfyUI(finish) as first, FakeComfyUI(finish) as second:
        second.concepts = ["b.safetensors", "covariance/a.safetensors"]
        code, printed = fakes(first, second)
        assert code == 0 and f"b: b.safetensors was on {second.address} already" in printed
        assert {path.name: path.read_bytes() for path in output.glob("*.safetensors")} == {
            "a.safetensors": b"the file a.safetensors", "b.safetensors": b"the file b.safetensors",
        }  # fmt: skip
        (post,) = first.posted("/prompt") + second.posted("/prompt")
        assert post["prompt"]["4"]["inputs"] == {"concept": ["3", 0], "filename": "a", "overwrite": False}
        code, printed = fakes(first, second)
        assert code == 0 and printed.count("is here already") == 4  # said, and in the table
        (output / "b.safetensors").unlink()
        second.answers["/perfusion/file"] = 404  # of an older pack
        code, printed = fakes(first, second)
        assert code == 1 and "b.safetensors cannot be fetched" in rows(printed)["b"][-1]
        del second.answers["/perfusion/file"]
        assert fakes(first, second, options=["--again"])[0] == 0
        replaced = [post["prompt"]["4"]["inputs"] for post in first.posted("/prompt") + second.posted("/prompt")]
        assert sorted(post["filename"] for post in replaced if post["overwrite"]) == ["a", "b"]


def test_a_server_that_stays_away_is_given_up_and_the_rest_is_told(fakes, monkeypatch):
    monkeypatch.setattr(crew, "PATIENCE", 1)

    async def die(fake, prompt_id):
        for path in ("/queue", "/prompt", "/upload/image", "/interrupt"):
            fake.answers[path] = 503
        await fake.drop()

    with FakeComfyUI(die) as fake:
        code, printed = fakes(fake)
        assert code == 1
        assert printed.count("No worker is left.") == 4  # said, and in the table
        assert f"{fake.address} answered 503" in printed


def test_a_server_that_is_not_there_at_the_start_is_done_without(fakes, monkeypatch):
    monkeypatch.setattr(comfyuis, "ANSWER_WITHIN", 1)
    with FakeComfyUI(finish) as gone:
        pass
    with FakeComfyUI(finish) as fake:
        code, printed = fakes(fake, gone)
        assert code == 0 and f"ComfyUI at {gone.address} does not answer" in printed
        assert len(fake.posted("/prompt")) == 2
    monkeypatch.setattr(comfyuis, "FIRST_ANSWERS_WITHIN", 1)
    with pytest.raises(SystemExit, match="No server can be used"):
        fakes(gone, options=["--again"])


def test_ctrl_c_takes_our_prompt_off_a_server_and_no_other(fakes):
    def press():
        while not fake.posted("/prompt"):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    try:
        with FakeComfyUI(lambda fake, prompt_id: fake.progress(prompt_id, 1)) as fake:
            threading.Thread(target=press, daemon=True).start()
            code, printed = fakes(fake)
            assert code == 1 and sorted(row[1] for row in rows(printed).values()) == ["not started", "stopped"]
            (post,) = fake.posted("/prompt")
            assert fake.posted("/queue") == [{"delete": [post["prompt_id"]]}]
            assert fake.posted("/interrupt") == [{"prompt_id": post["prompt_id"]}]
    finally:
        signal.signal(signal.SIGINT, usual)


def test_what_is_dropped_at_a_yield_is_taken_off_the_server_too():
    """Ray may cancel while it fetches what was yielded; work() goes no further then."""

    async def drop() -> None:
        worker = ComfyWorker.__ray_metadata__.modified_class(fake.address, "", WORKFLOW)
        work = worker.work(Task(WORKFLOW, "the id"))
        assert isinstance(await anext(work), Progress)
        await worker.leave()

    with FakeComfyUI(lambda fake, prompt_id: fake.progress(prompt_id, 1)) as fake:
        asyncio.run(drop())
        assert fake.posted("/queue") == [{"delete": ["the id"]}]
        assert fake.posted("/interrupt") == [{"prompt_id": "the id"}]


def test_captions_are_carried_where_the_server_takes_them(fakes, tmp_path):
    (concept_folder(tmp_path / "x", "a") / "0.txt").write_text("a <a> on a shelf")
    with FakeComfyUI(finish) as fake:
        fakes(fake, names=["a"])
        folder = fake.posted("/prompt")[0]["prompt"]["2"]["inputs"]["folder"]
        assert fake.posted("/upload/image") == [f"{folder}/0.png", f"{folder}/mask/0.png", f"{folder}/0.txt"]
        fake.refused_suffix = ".txt"
        code, printed = fakes(fake, names=["a"], options=["--again"])
        assert code == 0 and "Trained without the caption 0.txt" in printed
        fake.refused_suffix = ".png"
        code, printed = fakes(fake, names=["a"], options=["--again"])
        assert code == 1 and "answered 400" in printed and len(fake.posted("/prompt")) == 2


# What is asked of a server


def offer(where="here", checkpoints=("a.safetensors",), own=True) -> Offer:
    return Offer(where, json.loads(json.dumps(WORKFLOW)), list(checkpoints), [], own)


def chosen(**options: object) -> argparse.Namespace:
    return argparse.Namespace(**{"demo": False, "checkpoint": None, "again": False, **options})


def test_changed_photos_go_to_another_folder(tmp_path):
    folder = concept_folder(tmp_path, "a")
    folders = []
    for _ in range(2):
        concept = concept_folders.read_concept(folder, {"superclass": "toy"})
        task = train_many.task_of(concept, offer(), 1, "a.safetensors", chosen())
        folders.append(task.photo_folder)
        assert task.photos["mask/0.png"] == (folder / "mask" / "0.png").read_bytes()
        Image.new("RGB", (64, 64)).save(folder / "1.png")
    assert len(set(folders)) == 2 and all(folder.startswith("perfusion_many/a-") for folder in folders)


def test_the_checkpoint_is_one_that_all_have():
    two = [offer("first", ["b", "c"]), offer("second", ["c", "d"])]
    assert comfyuis.choose_checkpoint(chosen(), two) == "c"
    assert comfyuis.prompt_for(two[0], "c", chosen())["1"]["inputs"]["ckpt_name"] == "c"
    assert comfyuis.choose_checkpoint(chosen(), [offer(checkpoints=["0", "a.safetensors"])]) == "a.safetensors"
    with pytest.raises(SystemExit, match=r"b is not everywhere\. They have:\n.*first: b, c\n.*second: c, d"):
        comfyuis.choose_checkpoint(chosen(checkpoint="b"), two)
    with pytest.raises(ValueError, match="third has no c and is left out"):
        comfyuis.prompt_for(offer("third", ["b"]), "c", chosen())


def test_where_there_is_no_checkpoint_at_all_it_says_so():
    with pytest.raises(SystemExit, match=r"There is no checkpoint on first, second\. Put one into models/checkpoints"):
        comfyuis.choose_checkpoint(chosen(), [offer("first", []), offer("second", [])])


def test_on_the_demo_model_no_checkpoint_is_needed():
    without = offer(checkpoints=[])
    name = comfyuis.choose_checkpoint(chosen(demo=True), [without])
    prompt = comfyuis.prompt_for(without, name, chosen(demo=True))
    assert prompt["1"] == {"class_type": "PerfusionDemoModel", "inputs": {}}
    assert without.prompt == WORKFLOW


def test_a_workflow_with_other_loaders_is_used_as_it_is():
    other = offer(checkpoints=[])
    other.prompt["1"] = {"class_type": "UNETLoader", "inputs": {"unet_name": "x"}}
    assert comfyuis.prompt_for(other, comfyuis.choose_checkpoint(chosen(), [other]), chosen()) == other.prompt


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
        ("con", '{"superclass": "toy"}', "  con: a concept file cannot have this name"),
        ("toy.", '{"superclass": "toy"}', r"  toy\.: a concept file cannot have this name"),
        ("Training", '{"superclass": "toy"}', "  Training: a concept file cannot have this name"),
        ("a:b", '{"superclass": "toy"}', "  a:b: a concept file cannot have this name"),
        ("a\nb", '{"superclass": "toy"}', "a concept file cannot have this name"),
    ],
)
def test_unusable_concept_folders_are_listed_and_nothing_is_started(tmp_path, name, settings, problem):
    (concept_folder(tmp_path, name) / "concept.json").write_text(settings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="Nothing was started:") as stopped:
        train_many.main([str(tmp_path)])
    assert re.search(problem, str(stopped.value)) and "  empty: The folder 'empty' holds no pictures" in str(
        stopped.value
    )


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
def test_a_setting_that_training_does_not_have_is_refused_before_anything_is_started(tmp_path, settings, problem):
    concepts = [
        concept_folders.read_concept(concept_folder(tmp_path, name, superclass="toy", **more), {})
        for name, more in (("a", {}), ("b", settings))
    ]
    with pytest.raises(SystemExit, match=f"^b: .*{problem}"):
        train_many.fill_in(concepts, WORKFLOW["3"]["inputs"])


@pytest.mark.parametrize("text", ["{", "[]", '{"nodes": 3}', '{"last_node_id": 3}', "{}"])
def test_a_file_that_is_no_workflow_is_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"is not a workflow|has no PerfusionLoadPhotos"):
        comfyuis.load_workflow(path, train_many.NEEDED)


def test_a_folder_without_concepts_and_options_that_do_not_go_together_say_so(tmp_path, capsys):
    one = concept_folder(tmp_path / "photos", "one")
    (tmp_path / "empty").mkdir()
    for folder, problem in (
        (tmp_path / "none", "is not a folder"), (tmp_path / "empty", "has no subfolders"), (one, "holds photos itself"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=problem):
            train_many.main([str(folder)])
    for options, problem in (
        (["--server", "x", "--cpus", "2"], "ComfyUIs that run"), (["--workers", "0"], "at least 1"),
        (["--address", "ray://x:10001"], "--address auto"), (["--demo", "--checkpoint", "x"], "stands in"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            train_many.main([str(tmp_path / "photos"), *options])
        assert problem in capsys.readouterr().err


def test_the_files_that_are_sent_are_those_that_the_node_would_use(tmp_path):
    folder = concept_folder(tmp_path, "a", superclass="toy")
    files = "b.TIF B_mask.png b.caption c.gif c.jpg c.gif.txt masks/c.png ._0.png .thumbnails/0.png stray.txt".split()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name, "PNG")
    sent = {file.relative_to(folder).as_posix() for file in concept_folders.read_concept(folder, {}).files}
    assert sent >= set(files[:7]) and not sent & set(files[7:])
