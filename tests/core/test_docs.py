"""The examples of the README and of docs/your-own-model.md run as they are printed and do what the text says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pathspec
import pytest
import torch
from torch import Tensor

from perfusion_core import (
    ConceptSet,
    Training,
    TrainingSettings,
    Wiring,
    cross_attention_layers,
    load_concept,
    save_concept,
    train_concept,
)

from .makers import same_bits
from .tiny import DIM, Net, TinyTrainee

ROOT = Path(__file__).parents[2]
PACKAGE = ("nodes", "perfusion_core", "web", "locales", "workflows", "subgraphs")  # what ComfyUI reads, as folders
PAGE, README = ROOT / "docs/your-own-model.md", ROOT / "README.md"


def run(page: Path, names: dict[str, Any]) -> Iterator[None]:
    """Runs the page's blocks one after the other; ``names`` is what they see and leave."""
    text = page.read_text("utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        above = "\n" * text.count("\n", 0, block.start(1))  # so that errors name the page's own lines
        exec(compile(above + block[1], page, "exec"), names)
        yield


def weights(names: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in names["network"].state_dict().items()}
    return tensors | {f"encoder.{name}": tensor for name, tensor in names["encoder"].state_dict().items()}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that the page leaves, with its "folder", and the weights "before" anything of ours had touched the model."""
    names: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(tmp_path_factory.mktemp("page"))
        names["folder"] = Path.cwd()
        blocks = run(PAGE, names)
        next(blocks)
        names["before"] = {name: tensor.clone() for name, tensor in weights(names).items()}
        for _ in blocks:
            pass
    return names


def nearest(page: dict[str, Any], colour: Tensor) -> str:
    """Of the colours the model knows and the two it was taught."""
    colours = page["COLOURS"] | {"orange": (1, 0, -1), "sea": (-1, 0.3, 0.3)}
    return min(colours, key=lambda name: (colour - torch.tensor(colours[name])).norm().item())


def test_the_loss_falls_below_the_untrained_concepts(page: dict[str, Any]) -> None:
    untrained = Training(*page["task"])
    with page["orange"].wiring:
        start = untrained.evaluate()
    assert [checkpoint.step for checkpoint in page["checkpoints"]] == [10, 20, 30, 40]
    assert page["best"].loss < 0.5 * start
    assert page["best"].loss == min(checkpoint.loss for checkpoint in page["checkpoints"])


def test_the_resumed_training_equals_the_uninterrupted_one_bit_for_bit(page: dict[str, Any]) -> None:
    resumed, uninterrupted = page["resumed"].concept().tensors(), page["concept"].tensors()
    assert resumed.keys() == uninterrupted.keys()
    assert all(same_bits(tensor, uninterrupted[name]) for name, tensor in resumed.items())
    left = load_concept(page["folder"] / "half.safetensors")
    assert not torch.equal(left.target_input, page["concept"].target_input)


def test_the_file_holds_the_best_concept_for_the_pages_layers(page: dict[str, Any]) -> None:
    loaded = load_concept(page["folder"] / "orange.safetensors")
    assert (loaded.trigger, loaded.superclass, loaded.base_model) == ("<orange>", "red", "squares")
    assert same_bits(loaded.target_input, page["best"].concept.target_input)
    assert loaded.value_deltas.keys() == {"blocks.0.attn2", "blocks.1.attn2"}


def test_the_model_is_bit_identical_afterwards(page: dict[str, Any]) -> None:
    after = weights(page)
    assert all(same_bits(tensor, after[name]) for name, tensor in page["before"].items())
    assert all("forward" not in module.__dict__ for module in page["network"].modules())


def test_what_was_taught_apart_is_painted_together(page: dict[str, Any]) -> None:
    def colours(painted: Tensor) -> list[str]:
        return [nearest(page, painted[0, :, where].mean(1)) for where in (page["SQUARE"], ~page["SQUARE"])]

    assert colours(page["paint"](page["encoder"](["my red square on black"]))) == ["red", "black"]
    assert colours(page["locally"]) == colours(page["globally"]) == ["orange", "black"]
    assert colours(page["both"]) == ["orange", "sea"]


def test_keys_are_locked_locally_unless_told_otherwise(page: dict[str, Any]) -> None:
    loaded, network = page["loaded"], page["network"]
    embeddings = {"<orange>": loaded.token_embeddings["text"]}
    encoding = page["encoder"](["my <orange> square on black"], embeddings)
    with Wiring(network, cross_attention_layers(network), ConceptSet([loaded])):
        assert same_bits(page["paint"](encoding), page["locally"])
    with Wiring(network, cross_attention_layers(network), ConceptSet([loaded], betas=0.5)):
        assert not torch.allclose(page["paint"](encoding), page["globally"])


def test_a_published_package_has_all_that_its_nodes_read_or_name() -> None:
    """.comfyignore leaves out what matches, in any folder unless it begins with a slash."""
    left_out = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text("utf-8").splitlines())
    shipped = [path for folder in PACKAGE for path in (ROOT / folder).rglob("*") if path.is_file()]
    words = "".join(path.read_text("utf-8") for path in shipped if path.suffix in (".py", ".md", ".js"))
    named = {ROOT / name for name in re.findall(r"docs/[a-z-]+\.md", words)}
    assert {path.name for path in named} >= {"open-clip.md"}
    kept = [path.relative_to(ROOT).as_posix() for path in {*shipped, *named}]
    assert [name for name in kept if left_out.match_file(name)] == []
    assert left_out.match_file("tests/core/test_docs.py")


def test_the_readmes_example_edits_a_model_while_it_is_wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unet(Net):
        def forward(self, latent: Tensor, timestep: Tensor, encoding: Tensor) -> Tensor:
            return super().forward(latent, encoding)

    monkeypatch.chdir(tmp_path)
    trainee = TinyTrainee(torch.float32)
    settings = TrainingSettings(steps=2, accumulation=1)
    concept = train_concept(trainee, trainee.covariance_inverse(), "<my-teddy>", "teddy", "tiny", settings)
    save_concept(concept, "my-teddy.safetensors")
    random = torch.Generator().manual_seed(0)
    latent, encoding = torch.randn(1, 4, 3, 3, generator=random), torch.randn(1, 5, DIM, generator=random)
    encoding[0, 2] = concept.target_input  # the trigger's token
    names = {"unet": Unet().requires_grad_(False), "latent": latent, "timestep": torch.ones(1), "encoding": encoding}
    plain = names["unet"](latent, names["timestep"], encoding)
    assert len(list(run(README, names))) == 1
    assert not torch.allclose(names["prediction"], plain)
    assert same_bits(names["unet"](latent, names["timestep"], encoding), plain)
