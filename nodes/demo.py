"""A model for trying things out, without any download."""

from __future__ import annotations

from comfy_api.latest import io

from .host.demo_model import load_demo_model
from .schema import USE


class PerfusionDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PerfusionDemoModel",
            display_name="Perfusion Demo Model",
            category=USE,
            description="A small model of 96x96 picture-book scenes that comes with the pack: for trying things out, "
            "in seconds and without a GPU. Use it like Load Checkpoint, with a 96x96 Empty Latent Image and prompts "
            "such as 'a photo of a cat in the meadow'.",
            search_aliases=["perfusion", "picture book", "example", "test model", "tiny checkpoint"],
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The diffusion model. 20 to 25 steps of euler or dpmpp_2m at cfg 5 suit it."),
                io.Clip.Output(tooltip="Its text encoder. The node's help lists the words that it knows."),
                io.Vae.Output(tooltip="Its VAE, for pictures of 96x96."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model())
