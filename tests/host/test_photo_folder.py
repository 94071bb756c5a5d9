"""Which files of a folder are photos, masks and captions, and what is said of the others."""

import os
import time
import unicodedata

import folder_paths
import pytest
from comfyui_perfusion.nodes.host.encoder_covariance import caption_files, read_captions
from comfyui_perfusion.nodes.host.photos import photo_folders
from comfyui_perfusion.nodes.photo_folder import read_folder
from comfyui_perfusion.nodes.photos import PerfusionLoadPhotos
from PIL import Image


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    return tmp_path


def put(home, *names):
    for name in names:
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 200).save(path, "PNG") if path.suffix.lower() != ".txt" else path.write_text("a toy")


def partners(folder):
    """{photo: (mask, caption)} by names below the folder."""

    def name(file):
        return file and file.relative_to(folder).as_posix()

    return {name(photo.path): (name(photo.mask), name(photo.caption)) for photo in read_folder(folder).photos}


@pytest.mark.parametrize(
    "system",
    ["._1.jpg", ".hidden.png", ".thumbnails/1.jpg", "__MACOSX/1.jpg", "__MACOSX/._1.jpg", "@eaDir/1.jpg/SYNO.jpg",
     ".ipynb_checkpoints/1-checkpoint.jpg", "$RECYCLE.BIN/1.jpg", "System Volume Information/1.jpg", "#recycle/1.jpg",
     ".trash/deep/1.jpg", "@Recycle/1.jpg"],
)  # fmt: skip
def test_what_systems_leave_behind_does_not_exist(home, system):
    put(home, "toys/1.jpg", f"toys/{system}", system, "toys/mask/1.png", "toys/mask/._1.png")
    assert photo_folders()[0] == "toys"
    assert partners(home / "toys") == {"1.jpg": ("mask/1.png", None)}
    assert read_folder(home / "toys").remarks == ()


@pytest.mark.parametrize("mask", [
    "mask/a.png", "masks/a.png", "Mask/a.png", "MASKS/A.PNG", "_masks/a.jpg", "mask/a.jpg.png", "mask/a_mask.png",
    "mask/a-masklabel.png", "a_mask.png", "a-mask.png", "a.mask.png", "a-masklabel.png", "A_MASK.PNG", "a.jpg_mask.png",
    "mask/a.tif",
])  # fmt: skip
def test_masks_are_found_under_the_names_that_programs_give_them(home, mask):
    put(home, "toys/a.jpg", "toys/b.jpg", f"toys/{mask}")
    assert partners(home / "toys") == {"a.jpg": (mask, None), "b.jpg": (None, None)}
    assert photo_folders()[0] == "toys"
    assert read_folder(home / "toys").remarks == ("These have no mask, while others have: b.jpg.",)


@pytest.mark.parametrize("caption", ["a.txt", "A.txt", "a.TXT", "a.caption", "a.Caption", "a.jpg.txt"])
def test_captions_are_found_under_the_names_that_programs_give_them(home, caption):
    put(home, "a.jpg", "b.jpg")
    (home / caption).write_text("a toy")
    assert partners(home) == {"a.jpg": (None, caption), "b.jpg": (None, None)}


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_as_a_mac_does(home, forms):
    photo, other = (unicodedata.normalize(form, "Plüschbär é") for form in forms)
    put(home, f"{photo}.jpg", f"mask/{other}.png", f"{other}.txt")
    assert partners(home) == {f"{photo}.jpg": (f"mask/{other}.png", f"{other}.txt")}


def test_of_several_files_the_one_of_the_very_name_belongs_to_a_photo(home):
    put(home, "a.jpg", "A.jpg", "b.jpg", "b.png", "mask/a.png", "mask/A.png", "mask/b.jpg.png", "mask/b.png.png",
        "a.txt", "A.txt", "b.jpg.txt", "b.txt")  # fmt: skip
    (home / "a.caption").write_text("another")
    assert partners(home) == {
        "A.jpg": ("mask/A.png", "A.txt"), "a.jpg": ("mask/a.png", "a.txt"), "b.jpg": ("mask/b.jpg.png", "b.txt"),
        "b.png": ("mask/b.png.png", "b.txt"),
    }  # fmt: skip


def test_what_looks_like_a_mask_but_belongs_to_none_is_a_photo_and_is_said(home):
    put(home, "batman_mask.jpg", "toy.jpg")
    assert partners(home) == {"batman_mask.jpg": (None, None), "toy.jpg": (None, None)}
    assert "count as photos" in read_folder(home).remarks[0] and "batman_mask.jpg" in read_folder(home).remarks[0]


def test_a_folder_of_masks_is_offered_where_no_photos_are_above(home):
    put(home, "carnival/masks/a.jpg", "toys/a.jpg", "toys/masks/a.png")
    assert photo_folders()[:2] == ["carnival/masks", "toys"]


def test_masks_and_captions_of_no_photo_are_said(home):
    put(home, "a.jpg", "mask/old.png", *(f"c{number}.txt" for number in range(7)))
    masks, captions, bare = read_folder(home).remarks
    assert "old.png" in masks and "name of its photo" in masks
    assert "c0.txt, c1.txt, c2.txt, c3.txt, c4.txt and 2 more" in captions
    assert "no mask" in bare and "a.jpg" in bare


def test_pictures_that_cannot_be_opened_are_said_with_what_to_do(home, monkeypatch):
    monkeypatch.setattr("comfyui_perfusion.nodes.photo_folder.photo_endings", lambda: frozenset({".jpg"}))
    put(home, "a.jpg", "b.HEIC", "c.nef", "d.avif", "e.dng", "movie.mov")
    heif, raw, avif = read_folder(home).remarks
    assert "b.HEIC" in heif and "Install pillow-heif" in heif
    assert "c.nef, e.dng" in raw and "JPEG" in raw
    assert "d.avif" in avif and "Update Pillow" in avif
    (home / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"no pictures that can be opened\. It holds b\.HEIC: Install pillow-heif"):
        read_folder(home)


def test_the_node_says_what_it_found_and_what_is_odd(home):
    put(home, "toys/a.jpg", "toys/b.jpg", "toys/b.txt", "toys/stray.txt", "toys/mask/a.png")
    result = PerfusionLoadPhotos.execute("toys")
    first, *remarks = result.ui.as_dict()["text"][0].splitlines()
    assert first == "Photos: 2. Masks: 1. Captions: 1."
    assert [remark for remark in remarks if "stray.txt" in remark]
    assert "The mask of a.jpg covers the whole photo, so that the background is learned, too." in remarks


def test_reading_the_list_again_costs_one_look_per_folder(home, monkeypatch):
    from comfyui_perfusion.nodes.host import listing

    monkeypatch.setattr(listing, "_COARSEST", -1)  # times may be trusted at once
    put(home, *(f"{folder}/{number}.jpg" for folder in ("a", "b/c") for number in range(50)))
    assert photo_folders()[:2] == ["a", "b/c"]
    monkeypatch.setattr(listing, "_read", None)  # nothing is read again
    assert photo_folders()[:2] == ["a", "b/c"]


def test_a_change_in_the_same_moment_is_seen(home):
    put(home, "a/1.jpg")
    assert photo_folders()[0] == "a"
    put(home, "a/b/1.jpg")
    assert photo_folders()[:2] == ["a", "a/b"]
    (home / "a/1.jpg").unlink()
    assert photo_folders()[0] == "a/b"


@pytest.mark.parametrize("hours", [-1000, -1, 1, 1000])
def test_a_clock_that_jumps_hides_no_photo(home, hours):
    put(home, "a/1.jpg")
    assert photo_folders()[0] == "a"
    put(home, "b/1.jpg")
    later = time.time() + 3600 * hours
    os.utime(home, (later, later))
    assert photo_folders()[:2] == ["a", "b"]
    put(home, "c/1.jpg")  # the clock is right again
    assert photo_folders()[:3] == ["a", "b", "c"]


def test_text_files_beside_photos_of_their_name_are_no_caption_files(home):
    put(home, "toys/a.jpg", "toys/a.txt", "toys/many.txt", "words.txt")
    assert caption_files() == ["toys/many.txt", "words.txt"]


def test_a_linked_text_file_is_offered_and_read(home, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "words.txt").write_text("a cat\na dog")
    (home / "words.txt").symlink_to(outside / "words.txt")
    (home / "far").symlink_to(outside, target_is_directory=True)
    assert caption_files() == ["far/words.txt", "words.txt"]
    for name in caption_files():
        assert read_captions(name) == ["a cat", "a dog"]
    with pytest.raises(ValueError, match="There is no caption file"):
        read_captions("far/../../words.txt")
