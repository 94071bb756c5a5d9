"""A ComfyUI MODEL, CLIP and VAE as ``perfusion_core.training`` needs to see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ...perfusion_core import EncodedPrompts, Wiring, masked_mse
from ...perfusion_core.captions import TEMPLATES
from . import text
from .model import PREFIX, cross_attentions
from .trainable import out_of_place_clip, trainable_through

_PLACE = "<perfusion-trigger>"  # stands for the trigger, whatever it is, while templates are tokenized


class ComfyTrainee:
    """``perfusion_core.training.Trainee`` for the host's diffusion models that take CLIP's encodings."""

    def __init__(self, model, clip, latents: Tensor, masks: Tensor | None, superclass: str, size: int):
        """latents (photos, 4, h, w) in the model's own scale; masks (photos, 1, h, w) or None; size in pixels."""
        self._model, self._clip, self._size = model.model, clip, size
        self._device = model.load_device
        self._latents = latents.to(self._device)
        self._masks = None if masks is None else masks.to(self._device)
        self.photos, self.templates = len(latents), len(TEMPLATES)
        names = {layer: (f"{PREFIX}{layer}.to_k", f"{PREFIX}{layer}.to_v") for layer in cross_attentions(model)}
        self.wiring = Wiring(self._model, names)
        self._superclass = text.superclass_tokens(clip, superclass)
        self._tokens = _template_tokens(clip)

    def superclass_embeddings(self) -> Mapping[str, Tensor]:
        return {
            name: table[self._superclass[name]].detach().float().clone()
            for name, table in text.embedding_tables(self._clip).items()
        }

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        rows: dict[str, list[list]] = {name: [] for name in token_embeddings}
        positions = [self._tokens[template][1] for template in templates]
        for template, position in zip(templates, positions, strict=True):
            for name, tokens in self._tokens[template][0].items():
                rows[name].append([*tokens[:position], token_embeddings[name], *tokens[position + 1 :]])
        encodings, pooled = text.encode_rows(self._clip, rows)
        return EncodedPrompts(encodings.to(self._device), torch.tensor(positions), pooled)

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        """The error of the network's own prediction, whatever it predicts (eps, v, ...), at a uniform timestep.

        denoised = A(x, σ) + c(σ) · prediction, so (denoised − x0) / c is prediction minus target.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        sampling = self._model.model_sampling
        x0 = self._latents[photos.to(self._device)]
        timesteps = torch.randint(len(sampling.sigmas), (len(photos),), generator=generator)
        sigma = sampling.sigmas.to(self._device)[timesteps.to(self._device)]
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        context = prompts.encodings.to(getattr(self._model, "manual_cast_dtype", None) or self._model.get_dtype())
        self.wiring.prepare(context)
        conditioning = {}
        adm = self._model.encode_adm(
            device=self._device, pooled_output=prompts.pooled, width=self._size, height=self._size
        )
        if adm is not None:
            conditioning["y"] = adm
        denoised = self._model.apply_model(
            sampling.noise_scaling(sigma, noise, x0), sigma, c_crossattn=context, transformer_options={}, **conditioning
        )
        scale = sampling.calculate_denoised(sigma, torch.ones_like(x0[:, :1]), torch.zeros_like(x0[:, :1]))
        masks = None if self._masks is None else self._masks[photos.to(self._device)]
        return masked_mse(denoised.float() / scale, x0 / scale, masks)


@contextmanager
def open_trainee(
    model, clip, vae, photos: Tensor, masks: Tensor | None, superclass: str, flip: bool
) -> Iterator[ComfyTrainee]:
    """The models loaded and made trainable through, with the photos encoded; afterwards everything is as before.

    photos (n, size, size, 3), masks (n, size, size) or None, as ``prepare_photos`` gives them; with ``flip`` each is
    also seen mirrored. Raises ValueError for models that cannot be trained on.
    """
    _check_trainable(model)
    if vae is None:
        raise ValueError("There is no VAE: this checkpoint has none. Load one with Load VAE.")
    size = photos.shape[1]
    if flip:
        photos = torch.cat([photos, photos.flip(2)])
        masks = None if masks is None else torch.cat([masks, masks.flip(2)])
    latents = torch.cat([vae.encode(photo[None]) for photo in photos])
    latents = model.model.process_latent_in(latents.float())
    small = None if masks is None else F.interpolate(masks[:, None], size=latents.shape[-2:], mode="area")
    model, clip = _static(model, clip)
    comfy.model_management.load_models_gpu([model, clip.patcher], force_full_load=True)
    text.prepare_encoders(clip)
    with trainable_through(model.model, clip.cond_stage_model), out_of_place_clip(clip.cond_stage_model):
        own_masks = None if small is None else small.clone()  # clones made here are no inference tensors
        trainee = ComfyTrainee(model, clip, latents.clone(), own_masks, superclass, size)
        with trainee.wiring:
            yield trainee


def _static(model, clip):
    """The same models with all weights in one place, where the host would stream them to the GPU layer by layer."""
    if getattr(model, "is_dynamic", bool)():
        model = model.clone(disable_dynamic=True)
    if getattr(clip.patcher, "is_dynamic", bool)():
        clip = clip.clone(disable_dynamic=True)
        clip.cond_stage_model = clip.patcher.model
    return model, clip


def _check_trainable(model) -> None:
    if not cross_attentions(model):
        text_model = type(model.model).__name__
        raise ValueError(f"Perfusion trains on SD1.x, SD2.x and SDXL models; this one is {text_model}.")
    if model.model.concat_keys:
        raise ValueError("This is an inpainting model. Train on the base checkpoint; the concept works in both.")


def _template_tokens(clip) -> list[tuple[dict[str, list[int]], int]]:
    """For every template its tokens per encoder and where the trigger stands in them."""
    any_embeddings = {name: table[0] for name, table in text.embedding_tables(clip).items()}
    tokenizer = text.with_triggers(clip.tokenizer, {_PLACE: any_embeddings})
    found = []
    for template in TEMPLATES:
        sections = {
            name: sections[0] for name, sections in tokenizer.tokenize_with_weights(template.format(_PLACE)).items()
        }
        (position,) = text.trigger_positions(next(iter(sections.values())))
        found.append(({name: [token[0] for token in section] for name, section in sections.items()}, position))
    return found
