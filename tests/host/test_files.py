"""Which files are offered, read and written in models/perfusion, and that nothing outside it ever is."""

import os
import subprocess
import sys
from pathlib import Path

import folder_paths
import pytest
import torch
from comfyui_perfusion.nodes.host.files import concept_names, concept_path, path_to_save, register
from comfyui_perfusion.nodes.host.uses import ConceptUse
from comfyui_perfusion.nodes.load import PerfusionLoader, PerfusionSaveConcept
from comfyui_perfusion.perfusion_core import Concept, load_concept, save_concept

REPO = Path(__file__).parents[2]
CONCEPT = Concept(
    "toy", "<my-toy>", "teddy", "sd1", {"l": torch.ones(8)}, torch.ones(8), torch.ones(8), torch.ones(8),
    {"layer.attn2": torch.ones(8)},
)  # fmt: skip
OTHER = CONCEPT.replace(superclass="cup")


def save(name: str, overwrite: bool = False, concept: Concept = CONCEPT):
    return PerfusionSaveConcept.execute((ConceptUse(concept),), name, overwrite)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_concepts_of_all_folders_are_listed_and_covariances_are_not(model_folder, tmp_path):
    extra = tmp_path / "extra"
    folder_paths.folder_names_and_paths["perfusion"][0].append(str(extra))
    for path in (model_folder / "a", model_folder / "toys/b", extra / "c", extra / "covariance-like", extra / "toys/d"):
        save_concept(CONCEPT, path.with_suffix(".safetensors"))
    for path in (
        model_folder / "covariance/x.safetensors",
        model_folder / "training/a/x.safetensors",
        extra / "covariance/y.safetensors",
        extra / "notes.txt",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = ["a", "c", "covariance-like", "toys/b", "toys/d"]
    assert sorted(concept_names()) == [f"{name}.safetensors" for name in names]
    for name in concept_names():
        assert load_concept(concept_path(name)).trigger == "<my-toy>"


def test_registering_twice_keeps_the_users_extra_folders(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "perfusion", raising=False)
    folder_paths.add_model_folder_path("perfusion", str(tmp_path), is_default=True)  # as extra_model_paths.yaml does
    register()
    register()
    default = os.path.join(folder_paths.models_dir, "perfusion")
    assert folder_paths.folder_names_and_paths["perfusion"] == ([str(tmp_path), default], {".safetensors"})


def test_a_start_deletes_what_a_killed_server_left_in_any_model_folder(model_folder, tmp_path):
    extra = tmp_path / "extra"
    folder_paths.folder_names_and_paths["perfusion"][0].append(str(extra))
    parts = [model_folder / "training/toys/a/.b-0123abcd.part", extra / ".c-0123abcd.part", extra / ".d-0123abcd.part"]
    for path in (*parts, extra / "e.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (0, 0))
    parts[-1].touch()  # being written by another server
    register()
    assert files(model_folder) == []
    assert files(extra) == [".d-0123abcd.part", "e.safetensors"]


@pytest.mark.parametrize("name", ["../x", "toys/../../x", "{}", "..\\x", "x\0", "", "none", "toys"])
def test_only_files_in_the_folder_are_read(model_folder, tmp_path, name):
    outside = tmp_path / "x.safetensors"
    save_concept(CONCEPT, outside)
    (model_folder / "toys").mkdir()
    name = name.format(outside.with_suffix(""))
    for asked in (name, f"{name}.safetensors"):
        with pytest.raises(ValueError, match="There is no concept"):
            concept_path(asked)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("my-toy", "my-toy"),
        (" my-toy.safetensors ", "my-toy"),
        ("toys/my-toy", "toys/my-toy"),
        ("toys\\my-toy", "toys/my-toy"),
        ("v1.5 toy (new)", "v1.5 toy (new)"),
        ("玩具/плюшевый_мишка 🧸", "玩具/плюшевый_мишка 🧸"),
        ("toys/covariance/x", "toys/covariance/x"),
        ("ä" * 115, "ä" * 115),  # 242 bytes with its ending
        ("Plu\u0308schtier", "Plüschtier"),  # as a Mac writes it
        ("console/common-aux2.com1 con", "console/common-aux2.com1 con"),
    ],
)
def test_a_saved_concept_is_found_again_under_its_name(model_folder, name, written):
    path = save(name)[0]
    assert path == str(model_folder / f"{written}.safetensors")
    assert concept_names() == [f"{written}.safetensors"]
    assert load_concept(path).name == written.rpartition("/")[2]
    assert files(model_folder) == [f"{written}.safetensors"]


@pytest.mark.parametrize(
    ("trigger", "written"),
    [("<my-toy>", "my-toy"), ("sks", "sks"), ("<ぬい-2>", "ぬい-2"), ("<a.b!>", "a-b"), ("<*>", "concept")],
)
def test_without_a_name_it_is_called_as_its_trigger(model_folder, trigger, written):
    concept = CONCEPT.replace(trigger=trigger)
    assert save(" ", concept=concept)[0] == str(model_folder / f"{written}.safetensors")
    assert load_concept(save("", concept=concept)[0]).name == f"{written}-2"


@pytest.mark.parametrize(
    "name",
    [".safetensors", ".", "..", "../x", "toys/../../x", "toys/./x", "toys//x", "/tmp/x", "\\x", "x/", "...",
     "C:x", "C:\\x", "\\\\server\\x", "x\0y", "x\ny", "x?", "a*b", 'a"b', "a|b", "<my-toy>", "toys/../x", "x" * 300,
     "covariance/x", "covariance\\x", "covariance", "training/x", "training", "Covariance/x", "TRAINING/x",
     "con", "CON", "Aux", "nul.safetensors", "prn.v2", "com1", "lpt9", "COM¹", "conin$", "toys/con", "con/x", "nul .x",
     "x.", "x..", "toys./x", "toys /x", ".x", "toys/.x", ".trash/x", "x\x7f", "x\ud800"],
)  # fmt: skip
def test_names_that_cannot_be_are_refused_before_anything_is_written(model_folder, tmp_path, name):
    with pytest.raises(ValueError, match=r"Use letters|Choose another name|Choose a name inside") as caught:
        path_to_save(name, overwrite=True)
    assert len(str(caught.value)) < 500
    assert files(tmp_path) == []


def test_a_link_that_leads_out_of_the_folder_is_not_written_through(model_folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (model_folder / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(ValueError, match="leads out"):
        save("link/x")
    assert files(tmp_path / "outside") == []


def test_a_model_folder_that_is_itself_a_link_is_written_to(model_folder, tmp_path):
    (tmp_path / "disk").mkdir()
    model_folder.rmdir()
    model_folder.symlink_to(tmp_path / "disk", target_is_directory=True)
    save("toys/x")
    assert files(tmp_path / "disk") == ["toys/x.safetensors"]


def test_a_taken_name_gets_a_number_unless_it_is_to_be_overwritten(model_folder):
    for _ in range(3):
        save("toys/toy")
    assert files(model_folder) == [f"toys/toy{number}.safetensors" for number in ("-2", "-3", "")]
    save("toys/toy", overwrite=True, concept=OTHER)
    assert len(files(model_folder)) == 3
    assert load_concept(concept_path("toys/toy.safetensors")).superclass == "cup"
    assert load_concept(concept_path("toys/toy-3.safetensors")).name == "toy-3"


@pytest.mark.parametrize("chosen", ["toy.safetensors", None], ids=["chosen", "linked, not known yet"])
def test_the_loader_notices_that_a_file_has_changed(model_folder, chosen):
    save("toy")
    before = PerfusionLoader.fingerprint_inputs(chosen, beta=0.6)
    assert PerfusionLoader.fingerprint_inputs(chosen, beta=0.7) == before
    save("toy", overwrite=True, concept=OTHER)
    assert PerfusionLoader.fingerprint_inputs(chosen, beta=0.6) != before


@pytest.mark.parametrize("refusal", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_refusing_disk_keeps_the_old_file_and_says_what_to_do(model_folder, monkeypatch, refusal):
    save("toy")

    def refuse(*_):
        raise refusal

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RuntimeError, match=rf"toy\.safetensors .*{refusal.strerror}.*Make room"):
        save("toy", overwrite=True, concept=OTHER)
    assert files(model_folder) == ["toy.safetensors"]
    assert load_concept(model_folder / "toy.safetensors").superclass == "teddy"


def test_a_file_where_a_folder_should_be_is_reported(model_folder):
    (model_folder / "toys").write_text("no folder")
    with pytest.raises(RuntimeError, match="could not be written"):
        save("toys/toy")
    assert files(model_folder) == ["toys"]


WRITE_BEYOND_A_LIMIT = """
import resource, signal, sys, torch
from perfusion_core import Concept, load_concept, save_concept
e, i, dual, s, delta = (torch.ones(4096) for _ in range(5))
path, concept = sys.argv[1], Concept("toy", "<toy>", "teddy", "sd1", {"l": e}, i, dual, s, {"a.attn2": delta})
save_concept(concept, path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_concept(concept.replace(superclass="cup"), path)
except OSError as error:
    print(load_concept(path).superclass, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_disk_that_is_really_full_is_an_oserror_and_leaves_no_part(tmp_path):
    """With a limit of the operating system, since libraries that write report it in their own ways."""
    command = [sys.executable, "-c", WRITE_BEYOND_A_LIMIT, str(tmp_path / "toy.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.fspath(REPO))
    assert done.stdout.startswith("teddy "), done.stderr
    assert files(tmp_path) == ["toy.safetensors"]
