"""Concept files: small, exact, atomic, and refused with a reason whenever something is wrong with them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from perfusion_core import Concept, ConceptFileError, load_concept, save_concept
from perfusion_core.concept_file import read_metadata, remove_abandoned

from .makers import FIRST, LAYERS, file_concept, same_bits

ROOT = Path(__file__).parents[2]
SOUND = file_concept(metadata={"date": "2023-05-01"})
WORDS = ("name", "trigger", "superclass", "base_model")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "teddy.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a file with the concept SOUND holds."""
    path = tmp_path_factory.mktemp("whole") / "teddy.safetensors"
    save_concept(SOUND, path)
    return join(*split(path.read_bytes()))  # whose header is in the same order every time


def split(content: bytes) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: dict, data: bytes) -> bytes:
    encoded = json.dumps(header, sort_keys=True).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def refused(path: Path, content: bytes, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ConceptFileError, match=reason) as caught:
        load_concept(path)
    assert path.name in str(caught.value)


# Round trip


@pytest.mark.parametrize("free_keys", [False, True])
def test_a_concept_comes_back_bit_for_bit(path: Path, free_keys: bool) -> None:
    concept = file_concept(free_keys=free_keys, name="Grandma's teddy 🧸", metadata={"notes": "brown, ö"})
    save_concept(concept, path)
    loaded = load_concept(path)
    assert [getattr(loaded, name) for name in WORDS] == [getattr(concept, name) for name in WORDS]
    assert loaded.tensors().keys() == concept.tensors().keys()
    assert all(same_bits(tensor, concept.tensors()[name]) for name, tensor in loaded.tensors().items())
    assert (loaded.key_outputs is None) == (not free_keys)
    assert loaded.metadata["notes"] == "brown, ö"


def test_a_concept_equals_only_itself() -> None:
    assert SOUND.replace() != SOUND
    assert len({SOUND, SOUND, SOUND.replace()}) == 2


def test_a_concept_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SOUND.trigger = "<other>"


def test_a_concept_may_be_an_offset_alone(path: Path) -> None:
    save_concept(SOUND.replace(token_embeddings={"offset": torch.ones(12)}), path)
    assert load_concept(path).has_offset


@pytest.mark.parametrize(("key_freedom", "version"), [(0.0, "1"), (0.3, "2"), (1.0, "2")])
def test_only_a_concept_with_some_key_freedom_needs_the_second_version(
    path: Path, key_freedom: float, version: str
) -> None:
    concept = file_concept(key_freedom=key_freedom)
    save_concept(concept, path)
    metadata = read_metadata(path)
    assert metadata["format_version"] == version
    assert metadata.get("key_freedom", "0.0") == str(key_freedom)
    loaded = load_concept(path)
    assert loaded.key_freedom == key_freedom
    assert "key_freedom" not in loaded.metadata


@pytest.mark.parametrize("written", [None, "", "half", "-0.1", "1.1", "nan", "inf"])
def test_a_second_version_without_a_sound_key_freedom_is_refused(path: Path, whole: bytes, written: str | None) -> None:
    header, data = split(whole)
    header["__metadata__"] |= {"format_version": "2"} | ({} if written is None else {"key_freedom": written})
    refused(path, join(header, data), "key freedom")


def test_saving_what_was_loaded_keeps_every_byte_of_meaning(path: Path) -> None:
    save_concept(file_concept(metadata={"date": "2023-05-01", "training": '{"steps": 400}'}), path)
    once = load_concept(path)
    save_concept(once, path)
    again = load_concept(path)
    assert again.metadata == once.metadata
    assert again.metadata["date"] == "2023-05-01"


def test_other_tools_find_the_common_keys(path: Path) -> None:
    save_concept(file_concept(name="teddy", metadata={"format": "mine", "modelspec.title": "old"}), path)
    header, _ = split(path.read_bytes())
    metadata = header["__metadata__"]
    assert (metadata["format"], metadata["format_version"]) == ("perfusion-concept", "1")
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "tiny/perfusion"
    assert (metadata["modelspec.title"], metadata["modelspec.trigger_phrase"]) == ("teddy", "<concept0>")


def test_deltas_beyond_half_precision_are_kept_in_bfloat16(path: Path) -> None:
    large = torch.tensor([70_000.0, -3.0, 1e-20, 1e30, 0.5, -0.0]).bfloat16().float()
    concept = file_concept()
    save_concept(concept.replace(value_deltas=dict(concept.value_deltas) | {FIRST: large}), path)
    assert same_bits(load_concept(path).value_deltas[FIRST], large)
    header, _ = split(path.read_bytes())
    assert {header[f"value_delta.{layer}"]["dtype"] for layer in LAYERS} == {"F16", "BF16"}


def test_the_largest_number_of_half_precision_is_kept(path: Path) -> None:
    largest = torch.full((LAYERS[FIRST],), 65504.0)
    concept = file_concept()
    save_concept(concept.replace(value_deltas=dict(concept.value_deltas) | {FIRST: largest}), path)
    assert same_bits(load_concept(path).value_deltas[FIRST], largest)


def test_what_a_layer_has_is_kept_in_half_precision_and_all_else_in_full(path: Path) -> None:
    save_concept(file_concept(free_keys=True), path)
    header, _ = split(path.read_bytes())
    kinds = {name.partition(".")[0]: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    full = dict.fromkeys(("token_embedding", "target_input", "target_dual", "superclass_input"), "F32")
    assert kinds == {"value_delta": "F16", "key_output": "F16", **full}


def test_a_file_says_when_it_was_made(path: Path) -> None:
    before = datetime.datetime.now(datetime.timezone.utc).date()
    save_concept(file_concept(), path)
    after = datetime.datetime.now(datetime.timezone.utc).date()
    assert before <= datetime.date.fromisoformat(read_metadata(path)["date"]) <= after


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_of_any_precision_layout_and_history_can_be_saved(path: Path, dtype: torch.dtype) -> None:
    concept = file_concept()
    everything = torch.randn(24, dtype=dtype)
    strided = everything[::2].requires_grad_() if dtype == torch.bfloat16 else everything[::2]
    save_concept(concept.replace(superclass_input=strided), path)
    assert torch.equal(load_concept(path).superclass_input, everything[::2].float())


def test_a_shared_tensor_can_be_saved(path: Path) -> None:
    """Before training the target is the superclass's encoding, maybe the same tensor."""
    concept = file_concept()
    shared = concept.replace(superclass_input=concept.target_input)
    save_concept(shared, path)
    assert torch.equal(load_concept(path).superclass_input, concept.target_input)


def test_a_new_process_needs_nothing_but_the_file(path: Path) -> None:
    concept = file_concept()
    save_concept(concept, path)
    code = (
        "import sys; from perfusion_core import ConceptSet, load_concept; c = load_concept(sys.argv[1]); "
        "print(ConceptSet([c]).gates(c.target_input[None, None]).item())"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(torch.sigmoid(torch.tensor((1 - 0.7) / 0.15)).item(), abs=1e-6)


# Size

SD15 = dict(zip((1, 2, 4, 5, 7, 8), (320, 320, 640, 640, 1280, 1280), strict=True))
SD15_BLOCKS = {f"input_blocks.{block}.1": width for block, width in SD15.items()} | {"middle_block.1": 1280}
SD15_BLOCKS |= {f"output_blocks.{block}.1": 1280 >> max(0, block // 3 - 1) for block in range(3, 12)}
SDXL = {("input_blocks.4.1", 2): 640, ("input_blocks.5.1", 2): 640, ("input_blocks.7.1", 10): 1280}
SDXL |= {("input_blocks.8.1", 10): 1280, ("middle_block.1", 10): 1280}
SDXL |= {(f"output_blocks.{block}.1", 10 if block < 3 else 2): 1280 if block < 3 else 640 for block in range(6)}
SD15_LAYERS = {f"{block}.transformer_blocks.0.attn2": width for block, width in SD15_BLOCKS.items()}
SDXL_LAYERS = {
    f"{block}.transformer_blocks.{number}.attn2": width
    for (block, depth), width in SDXL.items()
    for number in range(depth)
}
REALISTIC_METADATA = {
    "training": json.dumps({"steps": 400, "batch_size": 4, "learning_rates": [0.03, 0.006], "seed": 0}),
    "fingerprint.text_encoder": "0" * 64,
    "fingerprint.covariance": "0" * 64,
    "recommended": json.dumps({"beta": 0.7, "temperature": 0.15, "key_lock": 0}),
}


@pytest.mark.parametrize(
    ("layers", "count", "width", "encoders", "kilobytes"),
    [(SD15_LAYERS, 16, 768, {"l": 768}, 60), (SDXL_LAYERS, 70, 2048, {"l": 768, "g": 1280}, 250)],
    ids=["sd15", "sdxl"],
)
def test_a_real_models_concept_is_small(
    path: Path, layers: dict[str, int], count: int, width: int, encoders: dict[str, int], kilobytes: int
) -> None:
    assert len(layers) == count
    target = torch.randn(width)
    concept = Concept(
        name="teddy",
        trigger="<my-teddy>",
        superclass="teddy",
        base_model="sd1",
        token_embeddings={encoder: torch.randn(d) for encoder, d in encoders.items()},
        target_input=target,
        target_dual=target.clone(),
        superclass_input=torch.randn(width),
        value_deltas={layer: torch.randn(d) for layer, d in layers.items()},
        metadata=REALISTIC_METADATA,
    )
    save_concept(concept, path)
    assert path.stat().st_size <= 1000 * kilobytes
    assert load_concept(path).dim == width


# Files that are something else


class _Bomb:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_code_in_a_file_is_never_run(path: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path.write_bytes(pickle.dumps(_Bomb(mark)))
    with pytest.raises(ConceptFileError, match="not a safetensors file"):
        load_concept(path)
    torch.save(_Bomb(mark), path)  # a zip with a pickle in it
    with pytest.raises(ConceptFileError, match="not a safetensors file"):
        load_concept(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it was live


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"a text about teddies, long enough to be read as a header",
        b"\0" * 8,
        b"\xff" * 8,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
    ],
)
def test_what_is_no_safetensors_file_is_refused(path: Path, content: bytes) -> None:
    refused(path, content, "not a safetensors file or is damaged")


def test_a_lora_is_called_a_lora(path: Path) -> None:
    save_file({"lora_unet_down.lora_down.weight": torch.ones(4, 8)}, path, {"ss_network_module": "networks.lora"})
    with pytest.raises(ConceptFileError, match=r"teddy\.safetensors is a LoRA, not a Perfusion concept"):
        load_concept(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_concept_that_lost_its_metadata_is_called_one(path: Path, metadata: dict[str, str] | None) -> None:
    save_file(SOUND.tensors(), path, metadata)
    with pytest.raises(ConceptFileError, match=r"teddy\.safetensors holds a Perfusion concept, but not its trigger.*"):
        load_concept(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_another_safetensors_file_is_refused(path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"emb_params": torch.ones(1, 768)}, path, metadata)
    with pytest.raises(ConceptFileError, match="another kind of safetensors file"):
        load_concept(path)


def test_a_large_model_is_refused_without_being_read(path: Path) -> None:
    save_file({"model.weight": torch.zeros(5 * 2**20)}, path)
    with pytest.raises(ConceptFileError, match="another kind of safetensors file"):
        load_concept(path)
    save_file({"value_delta.x": torch.zeros(4 * 2**20)}, path, {"format": "perfusion-concept"})
    with pytest.raises(ConceptFileError, match="16 MiB"):
        load_concept(path)


@pytest.mark.parametrize("name", [".", "missing.safetensors", "no/such/folder", "a\0b", "x" * 300])
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConceptFileError):
        load_concept(f"{tmp_path}/{name}")


# Files that are damaged, by hand


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, whole: bytes, keep: float) -> None:
    refused(path, whole[: int(len(whole) * keep)], "not a safetensors file or is damaged")


def _beyond_the_end(header: dict) -> None:
    header["target_input"]["data_offsets"] = [10**6, 10**6 + 48]


def _backwards(header: dict) -> None:
    header["target_input"]["data_offsets"].reverse()


def _overlapping(header: dict) -> None:
    header["target_input"]["data_offsets"] = header["target_dual"]["data_offsets"]


def _hole(header: dict) -> None:
    del header["target_input"]


def _wrong_size(header: dict) -> None:
    header["target_input"]["shape"] = [13]


def _negative(header: dict) -> None:
    header["target_input"]["shape"] = [-12]


def _huge(header: dict) -> None:
    header["target_input"] |= {"shape": [2**62, 4], "data_offsets": [0, 2**64]}


def _unknown_dtype(header: dict) -> None:
    header["target_input"]["dtype"] = "F128"


def _metadata_of_numbers(header: dict) -> None:
    header["__metadata__"]["trigger"] = 3


@pytest.mark.parametrize(
    "damage",
    [
        _beyond_the_end,
        _backwards,
        _overlapping,
        _hole,
        _wrong_size,
        _negative,
        _huge,
        _unknown_dtype,
        _metadata_of_numbers,
    ],
)
def test_a_damaged_header_is_refused(path: Path, whole: bytes, damage: Callable[[dict], None]) -> None:
    header, data = split(whole)
    damage(header)
    refused(path, join(header, data), "not a safetensors file or is damaged")


@pytest.mark.parametrize("shape", [[0], [0, 2**62, 2**62], [0, 2**63], [0, 2**63 - 1, 2], [0] * 100])
def test_an_empty_tensor_of_any_shape_is_refused(path: Path, whole: bytes, shape: list[int]) -> None:
    header, data = split(whole)
    header["value_delta.empty"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data)] * 2}
    path.write_bytes(join(header, data))
    with pytest.raises(ConceptFileError, match="teddy"):
        load_concept(path)


BITS = dict.fromkeys("BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ".split(), 8)
BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32}
BITS |= {"F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64}


@pytest.mark.parametrize("dtype", BITS)
def test_a_tensor_of_any_type_loads_as_numbers_or_is_refused(path: Path, whole: bytes, dtype: str) -> None:
    header, data = split(whole)
    offsets = [len(data), len(data) + 24]
    header["value_delta.new"] = {"dtype": dtype, "shape": [24 * 8 // BITS[dtype]], "data_offsets": offsets}
    path.write_bytes(join(header, data + bytes(24)))
    try:
        loaded = load_concept(path)
    except ConceptFileError:
        assert dtype not in ("F16", "BF16", "F32")
    else:
        assert "F" in dtype
        assert loaded.value_deltas["new"].dtype == torch.float32


@pytest.mark.parametrize("version", ["3", "10", "9" * 5000, "-1", "1.5", "one", "", None])
def test_a_newer_format_is_refused_and_says_to_update(path: Path, whole: bytes, version: str | None) -> None:
    header, data = split(whole)
    if version is None:
        del header["__metadata__"]["format_version"]
    else:
        header["__metadata__"]["format_version"] = version
    refused(path, join(header, data), "Update ComfyUI-Perfusion")


@pytest.mark.parametrize("name", ["name", "trigger", "superclass", "base_model"])
def test_missing_metadata_is_named(path: Path, whole: bytes, name: str) -> None:
    header, data = split(whole)
    del header["__metadata__"][name]
    refused(path, join(header, data), f"lacks {name}")


@pytest.mark.parametrize(
    ("name", "renamed", "reason"),
    [
        ("target_input", "other", "lacks target_input"),
        ("target_dual", "other", "lacks target_dual"),
        ("superclass_input", "other", "lacks superclass_input"),
        ("token_embedding.l", "token_embedding", "'token_embedding', which no concept has"),
        ("token_embedding.l", "token_embedding.", "'token_embedding.', which no concept has"),
        ("value_delta." + FIRST, "value_delta2." + FIRST, "which no concept has"),
    ],
)
def test_a_missing_tensor_is_named(path: Path, whole: bytes, name: str, renamed: str, reason: str) -> None:
    header, data = split(whole)
    header[renamed] = header.pop(name)
    refused(path, join(header, data), reason)


# Concepts that are unsound: neither loaded nor saved

NAN, INF = float("nan"), float("inf")


def with_delta(delta: Tensor) -> Concept:
    return SOUND.replace(value_deltas=dict(SOUND.value_deltas) | {FIRST: delta})


UNSOUND = {
    "NaN": (SOUND.replace(target_input=SOUND.target_input * NAN), "target_input holds NaN"),
    "one NaN in a delta": (with_delta(torch.tensor([1.0, NAN])), f"value_delta.{FIRST} holds NaN"),
    "infinity": (SOUND.replace(token_embeddings={"l": torch.tensor([INF])}), "token_embedding.l holds NaN or inf"),
    "a row vector": (SOUND.replace(target_input=SOUND.target_input[None]), r"target_input has shape \(1, 12\)"),
    "a number": (with_delta(torch.tensor(1.0)), r"shape \(\)"),
    "nothing": (with_delta(torch.tensor([])), r"shape \(0,\)"),
    "integers": (SOUND.replace(superclass_input=torch.ones(12, dtype=torch.int32)), "superclass_input is torch.int32"),
    "another width": (SOUND.replace(target_dual=torch.ones(11)), "target_dual has 11 numbers, target_input has 12"),
    "another width of s": (SOUND.replace(superclass_input=torch.ones(13)), "superclass_input has 13"),
    "a dual that points away": (SOUND.replace(target_dual=-SOUND.target_dual), "do not belong together"),
    "a dual of zero": (SOUND.replace(target_dual=torch.zeros(12)), "do not belong together"),
    "keys for other layers": (SOUND.replace(key_outputs={FIRST: torch.ones(6)}), "not for the same layers"),
    "no embedding": (SOUND.replace(token_embeddings={}), "no token embedding"),
    "an embedding and an offset": (
        SOUND.replace(token_embeddings={"l": torch.ones(8), "offset": torch.ones(12)}),
        "only one can be",
    ),
    "no delta": (SOUND.replace(value_deltas={}), "no value outputs"),
    "no superclass": (SOUND.replace(superclass=""), "no superclass"),
    "a blank superclass": (SOUND.replace(superclass=" \n"), "no superclass"),
    "no trigger": (SOUND.replace(trigger=""), "trigger is empty"),
    "two words": (SOUND.replace(trigger="my teddy"), "contains a space"),
    "a line break": (SOUND.replace(trigger="my\nteddy"), "contains a space"),
    "a weight": (SOUND.replace(trigger="(teddy:1.2)"), r"contains \("),
    "an embedding": (SOUND.replace(trigger="embedding:teddy"), "contains :"),
    "alternatives": (SOUND.replace(trigger="{a|b}"), r"contains \{"),
    "a null byte": (SOUND.replace(trigger="<my\0toy>"), r"invisible character \(U\+0000\)"),
    "a byte order mark": (SOUND.replace(trigger="\ufeff<my-toy>"), r"U\+FEFF"),
    "a space of no width": (SOUND.replace(trigger="<my-\u200btoy>"), r"U\+200B"),
    "a joiner": (SOUND.replace(trigger="<my\u200d-toy>"), r"U\+200D"),
    "a soft hyphen": (SOUND.replace(trigger="<my\xadtoy>"), r"U\+00AD"),
    "a direction mark": (SOUND.replace(trigger="<my-toy>\u200f"), r"U\+200F"),
    "a filler": (SOUND.replace(trigger="\u3164"), r"U\+3164"),
    "a variation selector": (SOUND.replace(trigger="<\u2764\ufe0f>"), r"U\+FE0F"),
}
BEYOND_THE_FILE = {
    "a delta beyond bfloat16": with_delta(torch.tensor([1e300], dtype=torch.float64)),
    "a delta beyond bfloat16, just": with_delta(torch.tensor([torch.finfo(torch.float32).max])),
    "a vector beyond fp32": SOUND.replace(superclass_input=torch.full((12,), 1e300, dtype=torch.float64)),
    "a dual that vanishes in fp32": SOUND.replace(target_dual=SOUND.target_dual.double() * 1e-300),
}


@pytest.mark.parametrize(("concept", "reason"), UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_concept_is_not_saved(path: Path, concept: Concept, reason: str) -> None:
    path.write_bytes(b"what was here before")
    with pytest.raises(ConceptFileError, match=reason):
        save_concept(concept, path)
    assert [entry.read_bytes() for entry in path.parent.iterdir()] == [b"what was here before"]


@pytest.mark.parametrize(("concept", "reason"), UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_concept_is_not_loaded(path: Path, concept: Concept, reason: str) -> None:
    metadata = {"format": "perfusion-concept", "format_version": "1"}
    metadata |= {name: getattr(concept, name) for name in WORDS}
    save_file({name: tensor.contiguous() for name, tensor in concept.tensors().items()}, path, metadata)
    with pytest.raises(ConceptFileError, match=reason) as caught:
        load_concept(path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("concept", BEYOND_THE_FILE.values(), ids=BEYOND_THE_FILE.keys())
def test_what_is_saved_can_be_loaded_again(path: Path, concept: Concept) -> None:
    """Numbers that the file's precision cannot hold are noticed on the way in, not on the way out."""
    try:
        save_concept(concept, path)
    except ConceptFileError:
        assert not path.exists()
    else:
        load_concept(path)


# Fuzz: load a sound concept, or raise ConceptFileError, nothing else ever


def loads_soundly_or_is_refused(path: Path, content: bytes, original: Concept) -> None:
    path.write_bytes(content)
    try:
        loaded = load_concept(path)
    except ConceptFileError as error:
        assert path.name in str(error)
        return
    assert loaded.problem() is None
    assert loaded.dim == original.dim
    for name, tensor in loaded.tensors().items():  # names have no checksum; those that survived have their shapes
        assert tensor.dtype == torch.float32
        assert name not in original.tensors() or tensor.shape == original.tensors()[name].shape


fuzzing = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(data=st.data())
def test_random_damage_is_noticed_or_harmless(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    places = st.one_of(st.integers(0, header_end - 1), st.integers(0, len(content) - 1))
    for place, flip in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), max_size=6)):
        content[place] ^= flip
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    extra = data.draw(st.binary(max_size=8))
    loads_soundly_or_is_refused(tmp_path / "fuzzed", bytes(content[:end]) + extra, SOUND)


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path: Path, whole: bytes) -> None:
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        loads_soundly_or_is_refused(tmp_path / "fuzzed", bytes(flipped), SOUND)


sizes = st.one_of(st.integers(-1, 300), st.sampled_from([2**31, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]))
shapes = st.one_of(st.lists(sizes, max_size=4), st.lists(sizes, max_size=4).map(lambda shape: [0, *shape]))
dtypes = st.sampled_from([*BITS, "", 7])
texts = st.one_of(st.text(max_size=20), st.text(alphabet="0123456789", min_size=4000, max_size=6000), st.integers())


@fuzzing
@given(data=st.data())
def test_a_malicious_header_is_refused_or_harmless(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    header, payload = split(whole)
    end = len(payload)
    kind = data.draw(st.sampled_from(["replace", "add", "add empty", "metadata", "remove"]))
    if kind == "replace":
        name = data.draw(st.sampled_from(sorted(SOUND.tensors())))
        header[name] |= {"dtype": data.draw(dtypes), "shape": data.draw(shapes)}
    elif kind in ("add", "add empty"):
        name = data.draw(st.sampled_from(["value_delta.new", "token_embedding.", "key_output.x", "x"]))
        offsets = [end, end] if kind == "add empty" else data.draw(st.lists(sizes, min_size=2, max_size=2))
        header[name] = {"dtype": data.draw(dtypes), "shape": data.draw(shapes), "data_offsets": offsets}
    elif kind == "metadata":
        header["__metadata__"][data.draw(st.sampled_from(sorted(header["__metadata__"])))] = data.draw(texts)
    else:
        del header[data.draw(st.sampled_from(sorted(header)))]
    path = tmp_path / "fuzzed"
    path.write_bytes(join(header, payload))
    try:
        assert load_concept(path).problem() is None
    except ConceptFileError as error:
        assert path.name in str(error)


# Saving is all or nothing


@pytest.mark.parametrize("fails", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_an_error_while_saving_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails: BaseException
) -> None:
    save_concept(SOUND, path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise fails

    monkeypatch.setattr("perfusion_core.concept_file.os.fsync", fail)
    with pytest.raises(type(fails)):
        save_concept(file_concept(seed=1), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_old_file_and_raises_oserror(path: Path) -> None:
    save_concept(SOUND, path)
    before = path.read_bytes()
    code = (
        "import resource, sys, torch; from perfusion_core import load_concept, save_concept\n"
        "concept = load_concept(sys.argv[1])\n"
        "concept = concept.replace(value_deltas={'wide': torch.ones(20_000)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save_concept(concept, sys.argv[1])\n"
        "except OSError as error: print('OSError')\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert result.stdout.strip() == "OSError", result.stderr


def test_a_file_is_replaced_only_by_the_finished_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_concept(SOUND, path)
    seen = []
    replace = Path.replace

    def watched(part: Path, target: Path) -> Path:
        seen.append((load_concept(part).name, load_concept(target).name))
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", watched)
    save_concept(SOUND.replace(name="new"), path)
    assert seen == [("new", SOUND.name)]
    assert load_concept(path).name == "new"


def test_all_of_a_file_is_on_the_disk_before_it_takes_its_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    save_concept(SOUND, path)
    assert sizes == [path.stat().st_size]


@pytest.mark.parametrize("length", range(1, 9))
def test_tensors_begin_at_a_multiple_of_eight_bytes(path: Path, length: int) -> None:
    save_concept(SOUND.replace(name="n" * length), path)
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


@pytest.mark.parametrize(("hours", "stays"), [(-48, True), (0, True), (23.9, True), (24.1, False)])
def test_what_a_killed_process_left_is_deleted_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float, stays: bool
) -> None:
    path = tmp_path / "toys" / "teddy.safetensors"
    with monkeypatch.context() as killed, pytest.raises(OSError):
        killed.setattr(Path, "replace", lambda *_: os.open(tmp_path / "nothing", os.O_RDONLY))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        save_concept(SOUND, path)
    (part,) = path.parent.iterdir()
    others = [part.with_name(name) for name in ("teddy.part", ".film.part", "a.teddy-0123abcd.part", f"{part.name}s")]
    save_concept(SOUND, path)
    for file in (part, path, *others):
        file.touch()
        os.utime(file, (time.time() - 3600 * hours,) * 2)
    remove_abandoned(tmp_path)
    assert part.exists() == stays
    assert all(file.exists() for file in (path, *others))


def test_what_cannot_be_deleted_stays(tmp_path: Path) -> None:
    folder = tmp_path / ".teddy-0123abcd.part" / ".teddy-0123abcd.part"
    folder.mkdir(parents=True)
    linked = tmp_path / ".teddy-89abcdef.part"
    linked.symlink_to(tmp_path / "nowhere")
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path / "nowhere")
    assert folder.is_dir() and linked.is_symlink()


def test_folders_are_made_and_long_names_fit(tmp_path: Path) -> None:
    path = tmp_path / "my" / "concepts" / ("ä" * 121 + ".safetensors")
    save_concept(SOUND, path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_saved_file_has_the_permissions_of_any_new_file(path: Path) -> None:
    previous = os.umask(0o022)
    try:
        save_concept(SOUND, path)
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o644
