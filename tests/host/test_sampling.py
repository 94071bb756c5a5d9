"""Pictures sampled inside our nodes are those of the host's own nodes."""

import pytest
import torch
from comfyui_perfusion.nodes.demo import PerfusionDemoModel
from comfyui_perfusion.nodes.host.sampling import Sampling

import nodes as host_nodes


@pytest.mark.parametrize("kind", ["demo", "sd1", "sdxl"])
def test_a_painted_picture_is_the_one_of_the_hosts_nodes_in_a_row(models, kind):
    model, clip, vae = PerfusionDemoModel.execute().args if kind == "demo" else models(kind)
    side = 96 if kind == "demo" else 128
    painted = Sampling(2, 5.0, "euler", "normal", 0 if kind == "demo" else side).paint(
        model, clip, vae, "a cat on snow", "a dog", seed=3, count=2
    )
    positive, negative = (host_nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a cat on snow", "a dog"))
    latent = host_nodes.EmptyLatentImage().generate(side, side, 2)[0]
    sampled = host_nodes.common_ksampler(model, 3, 2, 5.0, "euler", "normal", positive, negative, latent)[0]
    assert torch.equal(painted, host_nodes.VAEDecode().decode(vae, sampled)[0])
    assert painted.shape == (2, side, side, 3)


@pytest.mark.parametrize("missing, advice", [("clip", "Load one with Load CLIP"), ("vae", "Load one with Load VAE")])
def test_a_checkpoint_without_a_part_is_an_error_that_says_what_to_load(models, missing, advice):
    parts = {**dict(zip(("model", "clip", "vae"), models("sd1"), strict=True)), missing: None}
    with pytest.raises(ValueError, match=advice):
        Sampling(2, 5.0, "euler", "normal").paint(**parts, text="a cat", negative="", seed=0)
