"""The covariance of real text encoders: which tokens count, what is kept, captions from files, and the picture."""

import itertools
import os
import types
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfyui_perfusion.nodes.covariance import PerfusionCovariance
from comfyui_perfusion.nodes.host import encoder_covariance, progress
from comfyui_perfusion.nodes.host.encoder_covariance import (
    CAPTIONS,
    MAX_MIB,
    TOKENS,
    cached_covariance,
    caption_files,
    fingerprint,
    measure_covariance,
    read_captions,
)
from comfyui_perfusion.nodes.host.text import embedding_tables, with_triggers
from comfyui_perfusion.nodes.plots import spectrum
from comfyui_perfusion.perfusion_core import Covariance
from comfyui_perfusion.perfusion_core.captions import captions
from comfyui_perfusion.perfusion_core.covariance import RIDGE

WORDS = {
    "": 0,
    "a red cat on the grass": 6,
    "!-! cat": 4,  # the first has the number that SD2 and SDXL pad with
    "a <my-toy> on the beach": 5,
    "word " * 100: 75,
    "word " * 70 + "(a b c d e f g:1.1)": 70,  # what is weighted stays together, in the next section
}  # caption: how many of its tokens the first section holds


@pytest.fixture(autouse=True)
def _outside_a_graph(monkeypatch, model_folder):
    monkeypatch.setattr(PerfusionCovariance, "hidden", types.SimpleNamespace(unique_id=None))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty input directory."""
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


@pytest.fixture
def clip(models):
    return models("sd1")[1]


def run(clip, own="", count=8, tokens="all", ridge=RIDGE, caption_file="none") -> Covariance:
    return PerfusionCovariance.execute(clip, own, count, tokens, ridge, caption_file).args[0]


def kept(model_folder) -> list[str]:
    return sorted(path.name for path in (model_folder / "covariance").glob("*"))


@pytest.fixture
def nothing_is_encoded(monkeypatch):
    def encode(*_):
        pytest.fail("captions were encoded")

    return lambda: monkeypatch.setattr(encoder_covariance, "encode_rows", encode)


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_the_tokens_that_count_are_those_of_the_hosts_encodings(models, kind, tokens):
    clip = models(kind)[1].clone()
    embeddings = {name: table[1000].float().cpu() for name, table in embedding_tables(clip).items()}
    clip.tokenizer = with_triggers(clip.tokenizer, {"<my-toy>": embeddings})
    expected = []
    for caption, words in WORDS.items():
        encoding = clip.encode_from_tokens(clip.tokenize(caption))[0, :77].double()
        expected.append(
            {"all": encoding, "up to end": encoding[: words + 2], "content": encoding[1 : words + 1]}[tokens]
        )
    rows = torch.cat(expected)
    got = measure_covariance(clip, list(WORDS), None, tokens)
    assert got.count == len(rows)
    torch.testing.assert_close(got.matrix(), rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)


def test_a_covariance_of_other_tokens_or_another_count_is_not_used(clip, model_folder, nothing_is_encoded):
    made = {(tokens, count): run(clip, tokens=tokens, count=count) for tokens in TOKENS for count in (8, 9)}
    key = fingerprint(clip)
    endings = ("8", "9", "8-content", "9-content", "8-up-to-end", "9-up-to-end")
    assert kept(model_folder) == sorted(f"{key}-{ending}.safetensors" for ending in endings)
    assert len({covariance.count for covariance in made.values()}) == len(made)
    nothing_is_encoded()
    for (tokens, count), covariance in made.items():
        again = run(clip, tokens=tokens, count=count)
        assert again.count == covariance.count
        assert torch.equal(again.matrix().float(), covariance.matrix().float())


def test_a_clip_with_another_skip_has_a_covariance_of_its_own(clip, model_folder):
    skipped = clip.clone()
    skipped.clip_layer(-2)
    assert not torch.equal(run(clip).matrix(), run(skipped).matrix())
    assert len(kept(model_folder)) == 2


@pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="this host has no such LoRA")
def test_a_lora_beside_the_weights_is_seen_in_the_fingerprint(clip):
    layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"

    def with_lora(size):
        up, down = torch.full((layer.out_features, 1), size), torch.ones(1, layer.in_features)
        lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
        return comfy.sd.load_bypass_lora_for_models(None, clip, lora, 0, 1.0)[1]

    seen = [fingerprint(one) for one in (clip, with_lora(0.1), with_lora(0.2), with_lora(0.1), clip)]
    assert seen[1] == seen[3] and seen[0] == seen[4]
    assert len(set(seen)) == 3


def test_a_known_fingerprint_is_not_computed_again(clip, model_folder, monkeypatch):
    monkeypatch.setattr(encoder_covariance, "fingerprint", lambda _: pytest.fail("the weights were hashed again"))
    made = cached_covariance(clip, 8, None, "content", key="abc")
    assert kept(model_folder) == ["abc-8-content.safetensors"]
    assert torch.allclose(cached_covariance(clip, 8, None, "content", key="abc").matrix(), made.matrix())


def test_the_first_time_gives_the_very_bits_of_every_later_time(clip, model_folder):
    """Or the first training of a text encoder could not be repeated, nor taken up again exactly."""
    first, later = (cached_covariance(clip, 100, None) for _ in range(2))
    assert torch.equal(first.matrix(), later.matrix())
    assert torch.equal(first.inverse(), later.inverse())


def test_the_ridge_is_the_users_and_not_that_of_the_kept_file(clip, model_folder, nothing_is_encoded):
    first = run(clip, ridge=0.25)
    nothing_is_encoded()
    second = run(clip, ridge=0.5)
    assert (first.ridge, second.ridge) == (0.25, 0.5)
    assert not torch.allclose(first.inverse(), second.inverse())
    (name,) = kept(model_folder)
    assert Covariance.load(model_folder / "covariance" / name).ridge == RIDGE


def test_a_damaged_file_is_made_anew(clip, model_folder, caplog):
    first = run(clip)
    (path,) = (model_folder / "covariance").iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    assert torch.equal(run(clip).matrix(), first.matrix())
    assert "made anew" in caplog.text
    assert torch.equal(Covariance.load(path).matrix().float(), first.matrix().float())


def test_a_cancelled_one_leaves_no_file(clip, model_folder):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(clip)
    assert kept(model_folder) == []


@pytest.mark.parametrize("broken", ["reading", "writing"])
def test_a_dead_disk_only_warns(clip, model_folder, monkeypatch, caplog, broken):
    def dead(*_):
        raise OSError(5, "Input/output error")

    first = run(clip)
    if broken == "writing":
        monkeypatch.setattr(os, "fsync", dead)
        for path in (model_folder / "covariance").iterdir():
            path.unlink()
    else:
        monkeypatch.setattr(Path, "is_file", dead)
    assert torch.equal(run(clip).matrix(), first.matrix())
    assert "Input/output error" in caplog.text
    assert len(kept(model_folder)) == (broken == "reading")


def test_no_captions_are_refused(clip, model_folder):
    with pytest.raises(ValueError, match="There are no captions"):
        run(clip, count=0)
    with pytest.raises(ValueError, match="There are no captions"):
        cached_covariance(clip, 0, None, captions=["a cat"])
    with pytest.raises(ValueError, match="There are no captions"):
        measure_covariance(clip, [], None)
    assert kept(model_folder) == []


def test_captions_without_words_are_refused_where_only_words_count(clip):
    with pytest.raises(ValueError, match="captions hold no words"):
        measure_covariance(clip, ["", "()"], None, "content")
    assert measure_covariance(clip, ["", "()"], None, "up to end").count == 4


def test_a_checkpoint_without_text_encoder_is_refused():
    with pytest.raises(ValueError, match="There is no text encoder"):
        run(None)


@pytest.mark.parametrize("tokens", TOKENS)
def test_encodings_that_are_no_numbers_are_refused_and_not_kept(clip, model_folder, monkeypatch, tokens):
    encode = encoder_covariance.encode_rows
    monkeypatch.setattr(encoder_covariance, "encode_rows", lambda *args: (encode(*args)[0] * torch.nan, None))
    with pytest.raises(ValueError, match=r"NaN or infinity\. .*fp32 or bf16"):
        run(clip, tokens=tokens)
    assert kept(model_folder) == []


@pytest.mark.parametrize("bar", [True, False])
def test_inside_a_training_only_the_line_of_text_moves(clip, monkeypatch, bar):
    bars, texts = [], []

    class Bar(comfy.utils.ProgressBar):
        def update_absolute(self, value, total=None, preview=None):
            bars.append((value, total))

    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    monkeypatch.setattr(progress, "show_text", lambda text, _: texts.append(text))
    cached_covariance(clip, 40, None, bar=bar)
    assert bars == ([(32, 40), (40, 40)] if bar else [])
    assert len(texts) == 2
    assert all(text.startswith("Getting to know this checkpoint's text encoder") for text in texts)


def test_caption_files_are_listed_from_all_folders(home):
    for name in ("b.txt", "web/A.TXT", "web/deep/c.txt", "notes.md", "txt", "web/photo.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("a cat")
    (home / "folder.txt").mkdir()
    assert caption_files() == ["b.txt", "web/A.TXT", "web/deep/c.txt"]
    inputs = {entry.id: entry for entry in PerfusionCovariance.define_schema().inputs}
    assert inputs["caption_file"].options == ["none", *caption_files()]


def test_a_caption_file_holds_one_caption_per_line(home):
    (home / "web").mkdir()
    (home / "web/a.txt").write_bytes("\ufeffa café\r\n\r\n  a 猫 in a box \n\t\nlast".encode())
    assert read_captions("web/a.txt") == ["a café", "a 猫 in a box", "last"]


def test_captions_of_a_file_are_used_kept_and_known_by_their_text(clip, home, model_folder, nothing_is_encoded):
    lines = list(captions(12))
    (home / "a.txt").write_text("\n".join(lines[:10]))
    made = run(clip, count=6, caption_file="a.txt")
    assert torch.equal(made.matrix(), measure_covariance(clip, lines[:6], None).matrix())
    (name,) = kept(model_folder)
    assert name.startswith(f"{fingerprint(clip)}-6-")
    run(clip, count=6)
    run(clip, count=100, caption_file="a.txt")
    run(clip, count=6, caption_file="a.txt", tokens="content")
    (home / "a.txt").write_text("\n".join(lines[1:]))
    run(clip, count=6, caption_file="a.txt")
    assert len(kept(model_folder)) == 5
    nothing_is_encoded()
    (home / "copy.txt").write_text("\n\n".join(lines[:6]))
    assert run(clip, count=100, caption_file="copy.txt").count == made.count


def test_captions_of_the_field_win_over_the_file(clip, home, model_folder):
    (home / "a.txt").write_text("a dog")
    got = run(clip, own="\n a cat \n\ntwo cats\nthree", count=2, caption_file="a.txt")
    assert torch.equal(got.matrix(), measure_covariance(clip, ["a cat", "two cats"], None).matrix())
    assert kept(model_folder) == []


@pytest.mark.parametrize("chosen", ["a.txt", None], ids=["chosen", "linked, not known yet"])
def test_the_node_runs_again_when_its_file_changed(home, chosen):
    def seen(name=chosen):
        return PerfusionCovariance.fingerprint_inputs(caption_file=name, clip=None, captions="", count=100)

    (home / "a.txt").write_text("a dog")
    os.utime(home / "a.txt", ns=(1, 1))
    before = seen()
    assert seen() == before
    os.utime(home / "a.txt", ns=(2, 2))
    assert seen() != before
    assert seen("none") == seen("none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caf\xe9".encode("latin-1"), r"a\.txt cannot be read .*UTF-8"),
        ("a cat".encode("utf-16"), r"a\.txt cannot be read .*UTF-8"),
        ("a cat".encode("utf-16-le"), r"a\.txt holds null bytes"),
        (b"", r"a\.txt holds no captions"),
        (b"\xef\xbb\xbf \n\t\r\n", r"a\.txt holds no captions"),
        (b"a cat\n" + b"x" * 10_001, r"a\.txt holds .*more than 10000 characters"),
    ],
    ids=["latin-1", "utf-16", "utf-16 without its mark", "empty", "blank", "one long line"],
)
def test_a_file_of_something_else_is_refused_with_its_name(clip, home, content, message):
    (home / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(clip, caption_file="a.txt")


def test_a_huge_file_is_refused_unread(home):
    with (home / "a.txt").open("wb") as file:
        file.truncate(MAX_MIB * 2**20 + 1)
    with pytest.raises(ValueError, match=rf"a\.txt has 64 MiB, more than {MAX_MIB}"):
        read_captions("a.txt")


@pytest.mark.parametrize(
    "name",
    ["../secret.txt", "/etc/hosts.txt", "web/../../secret.txt", "folder.txt", "gone.txt", "a.png", ""],
)
def test_only_text_files_in_the_input_directory_are_read(home, tmp_path, name):
    (tmp_path / "secret.txt").write_text("secret")
    (home / "folder.txt").mkdir()
    (home / "a.png").write_text("a cat")
    with pytest.raises(ValueError, match="There is no caption file"):
        read_captions(name)


def test_a_text_file_that_the_user_linked_is_read(home, tmp_path):
    (tmp_path / "elsewhere.txt").write_text("a cat on a shelf")
    (home / "link.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert read_captions("link.txt") == ["a cat on a shelf"]


def test_the_node_begins_with_what_a_training_uses_by_itself():
    inputs = {entry.id: entry for entry in PerfusionCovariance.define_schema().inputs}
    assert inputs["tokens"].options[0] == "all"
    assert inputs["caption_file"].options[0] == "none"
    assert (inputs["count"].default, inputs["ridge"].default) == (CAPTIONS, RIDGE)


CURVE, RED = (0, 114, 178), (213, 94, 0)


def of_variances(*variances: float, ridge: float = RIDGE) -> Covariance:
    covariance = Covariance(len(variances), ridge)
    covariance.update(torch.tensor(variances, dtype=torch.float64).sqrt().diag())
    return covariance


def plotted(covariance: Covariance, colour: tuple[int, int, int]) -> np.ndarray:
    """Where inside the axes of the spectrum this colour is, (rows, columns)."""
    return (np.asarray(spectrum(covariance))[40:340] == colour).all(-1)


def test_the_spectrum_falls_from_the_largest_variance_and_shows_the_ridge():
    covariance = of_variances(*torch.logspace(2, -3, 50).tolist())
    curve = plotted(covariance, CURVE)
    heights = [column.nonzero()[0].mean() for column in curve.T if column.any()]
    assert len(heights) > 560
    assert all(high < low + 1 for high, low in itertools.pairwise(heights))
    line = plotted(covariance, RED).nonzero()[0].mean()
    covariance.ridge = 1e-3
    assert plotted(covariance, RED).nonzero()[0].mean() > line
    covariance.ridge = 0
    assert not plotted(covariance, RED).any()


@pytest.mark.parametrize(
    "covariance",
    [
        of_variances(1, 1, 1),
        of_variances(1, 0, 0),
        of_variances(0, 0, 0),
        of_variances(*torch.logspace(9, -9, 2048).tolist(), ridge=10.0),
        of_variances(1, 1e-3, ridge=1e-12),
        of_variances(1, 1e-3, ridge=0.0),
    ],
    ids=["all alike", "one direction", "nothing", "many", "tiny ridge", "no ridge"],
)
def test_any_spectrum_stays_inside_its_picture(covariance):
    picture = np.asarray(spectrum(covariance))
    assert picture.shape == (400, 720, 3)
    inner = picture[3:-3, 2:-2].min(axis=-1) < 128
    assert inner.any()
    assert (picture[:3] == 255).all()
    assert (picture[-3:] == 255).all()
    assert (picture[:, :2] == 255).all()
    assert (picture[:, -2:] == 255).all()
    assert plotted(covariance, CURVE).any()


def test_the_node_gives_the_spectrum_as_an_image(clip):
    covariance, image = PerfusionCovariance.execute(clip, "", 8, "all", 0.05, "none").args
    assert image.shape == (1, 400, 720, 3)
    assert torch.equal(image[0], torch.from_numpy(np.asarray(spectrum(covariance), dtype=np.float32) / 255))
