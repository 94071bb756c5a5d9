"""The routes below /perfusion/, asked over HTTP as a browser and as an attacker would."""

import asyncio
import base64
import gzip
import io
import json
import os
import shutil
import sys
import threading
import types
import zlib

import folder_paths
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from comfyui_perfusion.nodes.host import files, routes, thumbnail
from comfyui_perfusion.nodes.host.files import concept_names, path_to_save, save_with_training, training_path
from comfyui_perfusion.perfusion_core import Concept, load_concept, load_training, save_concept
from PIL import Image
from safetensors.torch import save_file

CONCEPT = Concept(
    "toy", "<my-toy>", "teddy", "sd1", {"l": torch.ones(8)}, torch.ones(8), torch.ones(8), torch.full((8,), 0.25),
    {"layer.attn2": torch.ones(8)}, metadata={"date": "2026-05-01"},
)  # fmt: skip
PICTURE = thumbnail.encoded(Image.new("RGB", (300, 200), "red"))
POSTS = {
    "metadata": {"notes": "mine"},
    "rename": {"name": "mine"},
    "trash": {},
}  # routes that take a file, with what else they need


def ask(method: str, route: str, body=None, headers=None, **options):
    """(status, answer) of a server with the routes, and with static files at the root as the host has them."""
    if body is not None:
        options["data"] = body if isinstance(body, (bytes, types.AsyncGeneratorType)) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}

    async def asked():
        table, app = web.RouteTableDef(), web.Application(client_max_size=2**30)
        routes.add_to(table)
        app.add_routes([*table, web.static("/", folder_paths.get_folder_paths("perfusion")[0])])
        async with TestClient(TestServer(app)) as client:
            answer = await client.request(method, f"/perfusion/{route}", headers=headers, **options)
            kind = answer.content_type
            return answer.status, await (answer.json() if kind == "application/json" else answer.read())

    with torch.inference_mode(False):
        return asyncio.run(asked())


def in_base64(picture: Image.Image, kind: str) -> str:
    content = io.BytesIO()
    picture.save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


def contents(folder) -> dict:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def folder(model_folder):
    """With toys/toy.safetensors and what it goes on training with."""
    path = model_folder / "toys/toy.safetensors"
    save_with_training(CONCEPT, {"step": torch.ones(1)}, path)
    return model_folder


FILE = os.path.join("toys", "toy.safetensors")


# What there is


def test_a_concept_is_listed_with_what_a_browser_shows(folder):
    metadata = {
        "notes": "brown,\nsoft 🧸",
        "modelspec.tags": "toy, brown",
        "thumbnail": PICTURE,
        "recommended_beta": "0.65",
    }
    metadata |= {"recommended_temperature": "0.15", "recommended_key_lock": "0.5"}
    path = folder / FILE
    save_concept(CONCEPT.replace(metadata=CONCEPT.metadata | metadata), path)
    status, listed = ask("GET", "concepts")
    assert status == 200
    assert listed == [
        {
            "file": FILE, "name": "toy", "trigger": "<my-toy>", "superclass": "teddy", "base_model": "sd1", "dim": 8,
            "date": "2026-05-01", "path": str(path), "bytes": path.stat().st_size, "modified": path.stat().st_mtime,
            "notes": "brown,\nsoft 🧸", "tags": ["toy", "brown"],
            "recommended": {"beta": 0.65, "temperature": 0.15, "key_lock": 0.5},
            "has_thumbnail": True, "superclass_similarity": 0.25,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("beta", [None, "", "much", "nan", "-1", "1e9"])
def test_what_nobody_recommends_is_null(folder, beta):
    metadata = {"recommended_beta": beta, "recommended_temperature": "0.15", "recommended_key_lock": "0"}
    save_concept(CONCEPT.replace(metadata={k: v for k, v in metadata.items() if v is not None}), folder / FILE)
    ((entry,),) = ask("GET", "concepts")[1:]
    assert (entry["recommended"], entry["has_thumbnail"], entry["notes"]) == (None, False, "")


def test_unusable_files_are_listed_with_the_reason_and_other_files_not_at_all(folder, tmp_path):
    (folder / "broken.safetensors").write_bytes(b"no")
    save_file({"lora_up": torch.ones(1)}, folder / "lora.safetensors")
    save_concept(CONCEPT, tmp_path / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "covariance").mkdir()
    (folder / "covariance/x.safetensors").write_bytes(b"")
    status, listed = ask("GET", "concepts")
    assert status == 200
    errors = {entry["file"]: entry.get("error") for entry in listed}
    assert errors.keys() == {"broken.safetensors", "lora.safetensors", "link.safetensors", FILE}
    assert "damaged" in errors["broken.safetensors"] and "is a LoRA" in errors["lora.safetensors"]
    assert errors["link.safetensors"] is errors[FILE] is None  # a link is the user's own: the Loader follows it, too
    paths = {entry["file"]: entry.get("path") for entry in listed}
    assert all(paths[name] == str(folder / name) for name in ("broken.safetensors", "link.safetensors"))
    assert str(tmp_path / "outside") not in json.dumps(listed)


def test_texts_of_foreign_files_are_cut_to_what_can_be_edited(folder):
    save_concept(CONCEPT.replace(name="n" * 10**6, metadata={"notes": "x" * 10**6}), folder / FILE)
    ((entry,),) = ask("GET", "concepts")[1:]
    assert len(json.dumps(entry)) < 5000


def test_files_are_read_off_the_servers_loop(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(routes, "load_concept", lambda path: seen.append(threading.current_thread()))
    monkeypatch.setattr(routes, "_entry", lambda name: routes.load_concept(name))
    ask("GET", "concepts")
    assert seen and seen[0] is not threading.main_thread()


def test_a_thumbnail_is_a_small_webp(folder):
    save_concept(CONCEPT.replace(metadata={"thumbnail": PICTURE}), folder / FILE)
    status, picture = ask("GET", "thumbnail", params={"file": FILE, "modified": "1"})
    assert (status, picture[:4], picture[8:12]) == (200, b"RIFF", b"WEBP")
    (folder / "seen.webp").write_bytes(picture)
    assert Image.open(folder / "seen.webp").size == (256, 171)


@pytest.mark.parametrize(
    "text", ["", "UklGRgAA", PICTURE[:60], "é", "PHN2Zz48L3N2Zz4=", PICTURE + "A" * 40_000], ids=range(6)
)
def test_what_is_no_thumbnail_is_not_sent(folder, text):
    save_concept(CONCEPT.replace(metadata={"thumbnail": text}), folder / FILE)
    status, answer = ask("GET", "thumbnail", params={"file": FILE})
    assert (status, answer) == (404, {"error": "toy.safetensors has no thumbnail."})


def test_a_concept_file_comes_as_it_is(folder):
    assert ask("GET", "file", params={"file": FILE}) == (200, (folder / FILE).read_bytes())
    save_file({"weight": torch.ones(1)}, folder / "other.safetensors")
    assert ask("GET", "file", params={"file": "other.safetensors"})[0] == 400


def test_a_thumbnail_of_any_picture_fits(folder):
    noise = torch.randint(256, (900, 700, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(thumbnail.encoded(Image.fromarray(noise.numpy()))) <= 16_000


# What may be changed


def test_an_edit_changes_the_metadata_and_its_answer_is_the_new_entry(folder):
    before = load_concept(folder / FILE)
    status, entry = ask("POST", "metadata", {"file": FILE, "name": "Bär", "trigger": "<bear>", "notes": "a\nb"})
    assert status == 200
    assert ask("GET", "concepts")[1] == [entry]
    after = load_concept(folder / FILE)
    assert (after.name, after.trigger, after.metadata["notes"]) == ("Bär", "<bear>", "a\nb")
    assert (entry["file"], entry["name"], entry["trigger"], entry["notes"]) == (FILE, "Bär", "<bear>", "a\nb")
    assert all(torch.equal(after.tensors()[name], tensor) for name, tensor in before.tensors().items())
    assert load_training(training_path(after, folder / FILE), after).keys() == {"step"}


def test_what_is_empty_and_was_not_there_is_no_change(folder):
    path = folder / FILE
    save_concept(CONCEPT.replace(metadata={}), path)
    before = path.read_bytes()
    assert ask("POST", "metadata", {"file": FILE, "notes": "", "tags": " ,"})[0] == 200
    assert path.read_bytes() == before
    ask("POST", "metadata", {"file": FILE, "notes": "a"})
    assert ask("POST", "metadata", {"file": FILE, "notes": ""})[1]["notes"] == ""


BAD_EDITS = [
    {},
    {"trigger": "two words"},
    {"trigger": ""},
    {"trigger": "<x>" * 50},
    {"name": " "},
    {"name": "a\nb"},
    {"name": "n" * 201},
    {"notes": "n" * 4001},
    {"notes": "a\0b"},
    {"notes": "\ud800"},
    {"notes": 3},
    {"notes": None},
    {"notes": ["a"]},
    {"notes": "a", "superclass": "cup"},
    {"notes": "a", "thumbnail": "UklG"},
    {"notes": "a", "path": "/tmp/x"},
    {"tags": "t" * 501},
    {"tags": ["a"]},
    {"thumbnail": ""},
    {"thumbnail": "PHN2Zz48L3N2Zz4="},
    {"thumbnail": in_base64(Image.new("RGB", (1025, 8)), "PNG")},
    {"thumbnail": in_base64(Image.new("RGB", (8, 8)), "BMP")},
]


@pytest.mark.parametrize("changes", BAD_EDITS, ids=range(len(BAD_EDITS)))
def test_an_edit_that_cannot_be_is_refused_with_the_reason(folder, changes):
    before = contents(folder)
    status, answer = ask("POST", "metadata", {"file": FILE, **changes})
    assert status == 400 and answer["error"]
    assert contents(folder) == before


def test_tags_are_written_where_other_tools_look_for_them(folder):
    _, entry = ask("POST", "metadata", {"file": FILE, "tags": " toy,brown ,, toy"})
    assert entry["tags"] == ["toy", "brown"]
    assert load_concept(folder / FILE).metadata["modelspec.tags"] == "toy, brown"
    assert ask("POST", "metadata", {"file": FILE, "tags": ""})[1]["tags"] == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_of_the_page_becomes_the_thumbnail(folder, kind):
    picture = in_base64(Image.new("RGB", (600, 300), "blue"), kind)
    status, entry = ask("POST", "metadata", {"file": FILE, "thumbnail": picture})
    assert (status, entry["has_thumbnail"]) == (200, True)
    shown = Image.open(io.BytesIO(ask("GET", "thumbnail", params={"file": FILE})[1]))
    red, _, blue = shown.convert("RGB").getpixel((5, 5))
    assert (shown.size, shown.format) == ((256, 128), "WEBP") and red < 40 and blue > 215


def test_a_concept_is_renamed_with_its_file_and_its_training_and_back(folder):
    before = contents(folder)
    status, entry = ask("POST", "rename", {"file": FILE, "name": " Bär 2 "})
    new = os.path.join("toys", "Bär 2.safetensors")
    assert (status, entry["file"], entry["name"]) == (200, new, "Bär 2")
    assert concept_names() == [new] == [entry["file"] for entry in ask("GET", "concepts")[1]]
    concept = load_concept(folder / new)
    assert concept.name == "Bär 2"
    assert load_training(training_path(concept, folder / new), concept).keys() == {"step"}
    assert {name.split("/")[0] for name in contents(folder)} == {"toys", "training"}
    assert ask("POST", "rename", {"file": new, "name": "toy"})[0] == 200
    assert contents(folder) == before


def test_a_new_name_replaces_no_file(folder):
    save_concept(CONCEPT, folder / "toys/other.safetensors")
    before = contents(folder)
    status, answer = ask("POST", "rename", {"file": FILE, "name": "other"})
    assert status == 400 and "There is a file other.safetensors already" in answer["error"]
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["", " ", "a\nb", "../x", "a/b", "a\\b", ".hidden", "a:b", "nul", "n" * 201, 3, None])
def test_what_cannot_be_a_file_is_no_new_name(folder, name):
    before = contents(folder)
    status, answer = ask("POST", "rename", {"file": FILE, "name": name})
    assert status == 400 and answer["error"]
    assert contents(folder) == before


def test_a_renaming_that_was_cut_short_is_completed_by_doing_it_again(folder, monkeypatch):
    with monkeypatch.context() as patch:
        move = files.move
        patch.setattr(files, "move", lambda source, *to: move(source, *to) if "training" in source.parts else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            files.rename_with_training(folder / FILE, "new")
    files.rename_with_training(folder / FILE, "new")
    concept = load_concept(folder / "toys/new.safetensors")
    assert load_training(training_path(concept, folder / "toys/new.safetensors"), concept).keys() == {"step"}


def test_a_broken_file_is_not_edited(folder):
    (folder / "broken.safetensors").write_bytes(b"no")
    status, answer = ask("POST", "metadata", {"file": "broken.safetensors", "notes": "a"})
    assert status == 400 and "damaged" in answer["error"]
    assert (folder / "broken.safetensors").read_bytes() == b"no"


def test_a_refusing_disk_is_an_error_and_leaves_the_old_file(folder, monkeypatch):
    before = contents(folder)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    status, answer = ask("POST", "metadata", {"file": FILE, "notes": "a"})
    assert (status, answer) == (500, {"error": "The disk refuses: No space left on device."})
    assert contents(folder) == before


# Trash and undo


def test_what_is_deleted_comes_back_as_it_was_with_its_training(folder):
    before = contents(folder)
    status, answer = ask("POST", "trash", {"file": FILE})
    assert status == 200
    assert concept_names() == [] and ask("GET", "concepts")[1] == []
    assert {name.partition("/")[0] for name in contents(folder)} == {".trash"}
    save_concept(CONCEPT, folder / "other.safetensors")
    status, entry = ask("POST", "undo", answer)
    assert (status, entry["file"], entry["trigger"]) == (200, FILE, "<my-toy>")
    (folder / "other.safetensors").unlink()
    assert contents(folder) == before
    assert not (folder / ".trash").exists()
    assert ask("POST", "undo", answer)[0] == 400


def test_an_undo_never_replaces_a_new_file_of_the_name(folder):
    _, answer = ask("POST", "trash", {"file": FILE})
    save_with_training(CONCEPT.replace(superclass="cup"), {"step": torch.zeros(1)}, folder / FILE)
    before = contents(folder)
    status, refused = ask("POST", "undo", answer)
    assert status == 400 and "There is a new toys/toy.safetensors" in refused["error"]
    assert contents(folder) == before
    _, second = ask("POST", "trash", {"file": FILE})
    assert ask("POST", "undo", answer)[1]["superclass"] == "teddy"
    assert ask("POST", "trash", {"file": FILE})[0] == 200
    assert ask("POST", "undo", second)[1]["superclass"] == "cup"


def test_broken_files_and_those_in_other_model_folders_can_be_deleted_too(folder, tmp_path):
    extra = tmp_path / "extra"
    extra.mkdir()
    folder_paths.folder_names_and_paths["perfusion"][0].append(str(extra))
    (extra / "broken.safetensors").write_bytes(b"no")
    _, answer = ask("POST", "trash", {"file": "broken.safetensors"})
    assert [name.partition("/")[0] for name in contents(extra)] == [".trash"]
    assert "error" in ask("POST", "undo", answer)[1]
    assert contents(extra) == {"broken.safetensors": b"no"}


def test_an_undo_is_not_led_out_of_the_folder_by_a_link_put_there_meanwhile(folder, tmp_path):
    _, answer = ask("POST", "trash", {"file": FILE})
    (tmp_path / "outside").mkdir()
    shutil.rmtree(folder / "toys")
    (folder / "toys").symlink_to(tmp_path / "outside", target_is_directory=True)
    status, refused = ask("POST", "undo", answer)
    assert status == 400 and "leads out" in refused["error"]
    assert contents(tmp_path / "outside") == {}


def test_a_trash_that_is_a_link_is_not_used(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (folder / ".trash").symlink_to(tmp_path / "outside", target_is_directory=True)
    assert ask("POST", "trash", {"file": FILE})[0] == 400
    assert contents(tmp_path / "outside") == {} and concept_names() == [FILE]


@pytest.mark.parametrize("token", ["", "..", "../toys", "A" * 16, "0" * 15, "0" * 16, "0" * 16 + "\n", "０" * 16, "*"])
def test_what_is_no_token_undoes_nothing(folder, token):
    before = contents(folder)
    assert ask("POST", "undo", {"undo": token})[0] == 400
    assert contents(folder) == before


def test_nothing_is_saved_into_the_trash():
    with pytest.raises(ValueError, match="Choose another name"):
        path_to_save(".trash/x", overwrite=True)


# Names that lead elsewhere

NAMES = [
    "../outside.safetensors",
    "toys/../../outside.safetensors",
    "toys/../toys/toy.safetensors",
    "./toys/toy.safetensors",
    "toys//toy.safetensors",
    "toys\\..\\..\\outside.safetensors",
    "{outside}",
    "file://{outside}",
    "/etc/passwd",
    "C:\\outside.safetensors",
    "\\\\server\\outside.safetensors",
    "toys/toy.safetensors\0",
    "toys/toy.safetensors\0.txt",
    "\0",
    "．．/outside.safetensors",
    "..／outside.safetensors",
    "‥/outside.safetensors",
    "toys∕toy.safetensors",
    "toys/toy.safetensor\u017f",  # a long s, which some fold into s
    "toys/to\u0301y.safetensors",
    "toys/toy.safetensors\u200b",
    "TOYS/TOY.SAFETENSORS",
    "toys%2ftoy.safetensors",
    "..%2foutside.safetensors",
    "toys",
    "toys/toy",
    "",
    ".",
    "*",
    "training/toys/toy/{state}",
    ".trash/0000000000000000/x.safetensors",
    "linked/outside",
    "linked/../outside.safetensors",
    "x" * 5000,
]


@pytest.mark.parametrize("name", ["link.safetensors", "linked/outside.safetensors"])
def test_a_linked_concept_is_shown_as_the_loader_uses_it_and_never_changed(folder, tmp_path, name):
    outside = tmp_path / "outside.safetensors"
    save_concept(CONCEPT.replace(metadata={"thumbnail": PICTURE}), outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    before = contents(tmp_path)
    assert ask("GET", "file", params={"file": name}) == (200, outside.read_bytes())
    assert ask("GET", "thumbnail", params={"file": name})[0] == 200
    for route, more in POSTS.items():
        status, answer = ask("POST", route, {"file": name, **more})
        assert status == 404 and "a link that leads out" in answer["error"]
    assert contents(tmp_path) == before
    assert (folder / "link.safetensors").is_symlink()


@pytest.mark.parametrize("name", NAMES)
def test_no_name_but_a_listed_one_reaches_a_file(folder, tmp_path, name):
    outside = tmp_path / "outside.safetensors"
    save_concept(CONCEPT.replace(metadata={"thumbnail": PICTURE}), outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    shutil.copytree(folder / "toys", folder / ".trash/0000000000000000")
    (state,) = (folder / "training/toys/toy").iterdir()
    name = name.format(outside=outside, state=state.name)
    before = contents(tmp_path)
    for route in ("thumbnail", "file"):
        status, answer = ask("GET", route, params={"file": name})
        assert status in (400, 404) and answer["error"]
    for route, more in POSTS.items():
        status, answer = ask("POST", route, {"file": name, **more})
        assert status in (400, 404) and answer["error"]
    assert contents(tmp_path) == before
    assert (folder / "link.safetensors").is_symlink()


# Requests that are none

WRONG_METHODS = [
    (method, route) for route in ("concepts", "thumbnail", "file") for method in ("POST", "PUT", "DELETE", "PATCH")
]
WRONG_METHODS += [(method, route) for route in (*POSTS, "undo") for method in ("GET", "PUT", "DELETE", "PATCH")]


@pytest.mark.parametrize(("method", "route"), WRONG_METHODS)
def test_a_wrong_method_is_refused(folder, method, route):
    before = contents(folder)
    status, answer = ask(method, route, {"file": FILE, "notes": "a"}, params={"file": FILE})
    assert (status, answer.keys()) == (405, {"error"})
    assert contents(folder) == before


async def _endless():
    for _ in range(10_000):
        yield b" " * 10_000


HUGE = {
    "long": lambda: (json.dumps({"file": FILE, "notes": "x" * 2**20}).encode(), {}),
    "padded": lambda: (b" " * 2**16 + json.dumps({"file": FILE}).encode(), {}),
    "endless": lambda: (_endless(), {}),
    "packed": lambda: (gzip.compress(b" " * 2**24), {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("route", [*POSTS, "undo"])
@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_body_is_refused_unread(folder, route, kind):
    before = contents(folder)
    body, headers = HUGE[kind]()
    assert ask("POST", route, body, headers)[0] == 413
    assert contents(folder) == before


GARBAGE = [
    b"", b"no", b"[]", b"3", b"null", b'"file"', b"{", b'{"file": NaN', b"\xff\xfe", b"[" * 60_000,
    b'{"file": ' * 5_000, b'{"file": 1' + b"0" * 60_000 + b"}", b"\0", json.dumps([{"file": FILE}]).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
def test_a_body_that_is_no_json_object_is_refused(folder, body):
    for route in (*POSTS, "undo"):
        status, answer = ask("POST", route, body)
        assert status == 400 and answer["error"]


def test_a_body_that_is_packed_wrongly_is_refused(folder):
    packed = gzip.compress(json.dumps({"file": FILE}).encode())
    for damaged in (b"no gzip at all", packed[:-12], packed[:10] + zlib.compress(b"x")):
        assert ask("POST", "trash", damaged, {"Content-Encoding": "gzip"})[0] == 400
    assert concept_names() == [FILE]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_another_sites_page_can_send_unasked_is_refused(folder, kind):
    """Browsers ask the server first before a page of another site may send JSON."""
    before = contents(folder)
    for route, more in POSTS.items():
        assert ask("POST", route, {"file": FILE, **more}, {"Content-Type": kind})[0] == 415
    assert contents(folder) == before


def test_the_routes_are_added_to_the_hosts_server_and_to_none_without_one(monkeypatch):
    table = web.RouteTableDef()
    for instance in (types.SimpleNamespace(routes=table), None):
        server = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=instance))
        monkeypatch.setitem(sys.modules, "server", server)
        routes.register()
    assert {route.path for route in table} == {
        f"/perfusion/{name}"
        for name in (
            "concepts",
            "thumbnail",
            "file",
            "superclass",
            "metadata",
            "rename",
            "trash",
            "undo",
            "estimate",
            "stop",
            "continue",
            "choose",
        )
    }
