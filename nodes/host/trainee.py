"""A ComfyUI MODEL, CLIP and VAE as ``perfusion_core.training`` needs to see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.k_diffusion.sampling import sample_dpmpp_2m
from torch import Tensor

from ...perfusion_core import Concept, ConceptSet, EncodedPrompts, Wiring, draw_timesteps, masked_mse
from . import text
from .adapter import network_dtype, receiver
from .families import family_of
from .model import base_model, cross_attentions, encoding_width, without_concepts
from .sampling import decoded
from .tokenizer import TRIGGER
from .trainable import (
    attention_options,
    attention_with_backward,
    checkpointed,
    out_of_place_texts,
    rotation_with_backward,
    trainable_through,
)

_PLACE = "<perfusion-trigger>"  # stands for the trigger, whatever it is, while sentences are tokenized
_SAMPLING_STEPS = 20  # of previews


@dataclass(frozen=True)
class Subject:
    """What there is to learn from, all of one size in pixels."""

    photos: Tensor  # (photos, size, size, 3) in 0..1
    masks: Tensor | None  # (photos, size, size) in 0..1
    sentences: Sequence[Sequence[str]]  # for every photo, with {} in the trigger's place
    superclass: str
    flip: bool = False  # whether mirrored photos are seen too
    unmasked_weight: float = 0.0  # what counts off the masks, 0..1
    min_timestep: int = 0  # of a thousand: those below, of less noise, are left out

    def mirrored(self) -> Subject:
        masks = None if self.masks is None else torch.cat([self.masks, self.masks.flip(2)])
        photos = torch.cat([self.photos, self.photos.flip(2)])
        sentences = [*self.sentences, *self.sentences]
        return replace(self, photos=photos, masks=masks, sentences=sentences, flip=False)


class ComfyTrainee:
    """``perfusion_core.training.Trainee`` for the host's diffusion models that take CLIP's encodings."""

    def __init__(self, model, clip, vae, subject: Subject, latents: Tensor, autocast: torch.dtype | None = None):
        """latents (photos, channels, h, w), or with one frame (photos, channels, 1, h, w), of the subject's photos in
        the model's own scale; autocast: the network's dtype."""
        family = family_of(model)
        self._received, self._cfg, self.zero_padded = receiver(model), family.cfg, family.zero_padded
        self._model, self._clip, self._vae, self._patchers = model.model, clip, vae, (model, clip.patcher)
        self._device, self._autocast = model.load_device, autocast
        self._size = subject.photos.shape[1]
        self._latents = latents.to(self._device)
        self._masks, self._unmasked_weight = None, subject.unmasked_weight
        self._min_timestep = subject.min_timestep
        if subject.masks is not None:
            self._masks = F.interpolate(subject.masks[:, None].clone(), size=latents.shape[-2:], mode="area")
            self._masks = self._masks.to(self._device).unflatten(1, (1,) * (latents.ndim - 3))
        sentences = list(dict.fromkeys(sentence for own in subject.sentences for sentence in own))
        self.templates = [[sentences.index(sentence) for sentence in own] for own in subject.sentences]
        layers = cross_attentions(model)
        names = {layer: (attention.path("to_k"), attention.path("to_v")) for layer, attention in layers.items()}
        self.wiring = Wiring(self._model, names)
        self._superclass_words = subject.superclass
        self._superclass = text.superclass_tokens(clip, subject.superclass)
        self._tokens = self._tokenized(sentences)

    def superclass_embeddings(self) -> Mapping[str, Tensor]:
        return {
            name: table[self._superclass[name]].detach().float().clone()
            for name, table in text.embedding_tables(self._clip).items()
        }

    def _tokenized(self, sentences: Sequence[str]) -> list[_Tokens]:
        return _tokenized(self._clip, sentences, self._superclass_words)

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        return self._encode([self._tokens[template] for template in templates], token_embeddings)

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        """The error of the network's own prediction, whatever it predicts (eps, v, ...), at drawn timesteps.

        denoised = A(x, σ) + c(σ) · prediction, so (denoised − x0) / c is prediction minus target.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        sampling = self._model.model_sampling
        x0 = self._latents[photos.to(self._device)]
        length = len(sampling.sigmas)  # 1000 mostly; LCM has 50
        timesteps = draw_timesteps(len(photos), length, generator, length * self._min_timestep // 1000)
        sigma = sampling.sigmas.to(self._device)[timesteps.to(self._device)]
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        denoised = self._denoised(sampling.noise_scaling(sigma, noise, x0), sigma, prompts)
        scale = sampling.calculate_denoised(sigma, torch.ones_like(x0[:, :1]), torch.zeros_like(x0[:, :1]))
        masks = None if self._masks is None else self._masks[photos.to(self._device)]
        return masked_mse(denoised.float() / scale, x0 / scale, masks, self._unmasked_weight)

    @torch.no_grad()
    def pictures(self, sentences: Sequence[str], concept: Concept, seed: int) -> Tensor:
        """What the concept looks like now, with the Loader's defaults: IMAGE (sentences, size, size, 3).

        Every sentence holds {} in the trigger's place and starts from the same noise.
        """
        self.wiring.concepts = ConceptSet([concept], zero_padded=self.zero_padded)
        embeddings = {name: embedding.to(self._device) for name, embedding in concept.token_embeddings.items()}
        rows = self._tokenized([*sentences, ""])
        latents = [self._sample(self._encode([row, rows[-1]], embeddings), seed) for row in rows[:-1]]
        latents = self._model.process_latent_out(torch.cat(latents).float())
        with torch.inference_mode(), _out_of_reach(self._patchers):
            pictures = decoded(self._vae, latents)
            comfy.model_management.free_memory(1e30, self._device)  # the VAE, not wanted until the next time
        return pictures.float().cpu()

    def _sample(self, prompts: EncodedPrompts, seed: int) -> Tensor:
        """One latent for the first of two prompts; the second is the negative one."""
        sampling = self._model.model_sampling
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", _SAMPLING_STEPS).to(self._device)
        noise = torch.randn(self._latents[:1].shape, generator=torch.Generator().manual_seed(seed)).to(self._latents)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            positive, negative = self._denoised(torch.cat([x, x]), sigma.repeat(2), prompts).float().chunk(2)
            return negative + self._cfg * (positive - negative)

        start = sampling.noise_scaling(sigmas[:1], noise, torch.zeros_like(noise), max_denoise=True)
        return sample_dpmpp_2m(denoise, start, sigmas, disable=True)

    def _denoised(self, x: Tensor, sigma: Tensor, prompts: EncodedPrompts) -> Tensor:
        context = prompts.encodings.to(network_dtype(self._model))
        self.wiring.prepare(context)
        adm = self._model.encode_adm(
            device=self._device, pooled_output=prompts.pooled, width=self._size, height=self._size
        )
        conditioning = {} if adm is None else {"y": adm}
        with torch.autocast(self._device.type, self._autocast) if self._autocast else nullcontext():
            return self._model.apply_model(
                x, sigma, c_crossattn=context, transformer_options=attention_options(), **conditioning
            )

    def _encode(self, rows: Sequence[_Tokens], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        """With ``token_embeddings`` where triggers stand; a tokenizer without an encoder has superclass words there."""
        tokens: dict[str, list[list]] = {name: [] for name in rows[0].tokens}
        for row in rows:
            for name, own in row.tokens.items():
                tokens[name].append([
                    token_embeddings[name] if name in token_embeddings and hasattr(token, TRIGGER) else token
                    for token in own
                ])  # fmt: skip
        encodings, pooled = text.encode_rows(self._clip, tokens, self._received)
        positions = torch.tensor([row.position or 0 for row in rows])
        pooled = None if pooled is None else pooled.to(self._device)
        return EncodedPrompts(encodings.to(self._device), positions, pooled)


@contextmanager
def open_trainee(
    model, clip, vae, subject: Subject, autocast: torch.dtype | None = None, checkpointing: bool = False
) -> Iterator[ComfyTrainee]:
    """The models loaded and made trainable through, with the photos encoded; afterwards everything is as before.

    autocast: bf16 or fp16 for the network's arithmetic, None for the model's own; checkpointing: less memory, more
    time. Raises ValueError for models that cannot be trained on.
    """
    check_trainable(model, clip, vae)
    if subject.flip:
        subject = subject.mirrored()
    latents = torch.cat([vae.encode(photo[None]) for photo in subject.photos])
    if latents.shape[1:2] != (model.get_model_object("latent_format").latent_channels,):
        raise ValueError(f"This VAE makes latents {tuple(latents.shape[1:])}, not this model's. Use its own VAE.")
    model, clip = _static(without_concepts(model), clip)
    patchers = [model, clip.patcher]
    comfy.model_management.load_models_gpu(patchers, force_full_load=True)
    with _out_of_reach(patchers):
        comfy.model_management.free_memory(1e30, model.load_device)  # the VAE and what else is not needed
    latents = model.model.process_latent_in(latents.float())  # by the format that a node may have patched in
    text.prepare_encoders(clip)
    with ExitStack() as stack:
        stack.enter_context(trainable_through(model.model, clip.cond_stage_model))
        stack.enter_context(out_of_place_texts(clip.cond_stage_model))
        stack.enter_context(attention_with_backward())
        stack.enter_context(rotation_with_backward())
        if checkpointing:
            stack.enter_context(checkpointed(model.model, clip.cond_stage_model))
        trainee = ComfyTrainee(model, clip, vae, subject, latents.clone(), autocast)  # clones are no inference tensors
        stack.enter_context(trainee.wiring)
        yield trainee


@contextmanager
def _out_of_reach(patchers: Sequence) -> Iterator[None]:
    """The host cannot offload these models for a while."""
    loaded = comfy.model_management.current_loaded_models
    ours = [entry for entry in loaded if any(entry.model is patcher for patcher in patchers)]
    for entry in ours:
        loaded.remove(entry)
    try:
        yield
    finally:
        loaded[:0] = ours


def _static(model, clip):
    """The same models with all weights in one place, where the host would stream them to the GPU layer by layer."""
    if model.is_dynamic():
        model = model.clone(disable_dynamic=True)
    if clip.patcher.is_dynamic():
        clip = clip.clone(disable_dynamic=True)
        clip.cond_stage_model = clip.patcher.model
    return model, clip


def check_trainable(model, clip, vae) -> None:
    """Raises ValueError for models that cannot be trained on, or do not belong together."""
    encoding_width(model)  # raises for a model without text cross-attention
    if reason := family_of(model).no_training:
        raise ValueError(reason)
    if foreign := text.encoders(clip).keys() - family_of(model).texts:
        raise ValueError(
            f"This text encoder ({', '.join(sorted(foreign))}) is not this model's ({base_model(model)}). Connect the "
            "one that belongs to it."
        )
    channels = model.model.model_config.unet_config.get("in_channels")
    expected = model.get_model_object("latent_format").latent_channels
    if model.model.concat_keys or channels != expected:
        raise ValueError(
            f"This model takes {channels} channels, not {expected}: it is made for inpainting, editing, upscaling or "
            "video. Train on the base checkpoint; the concept then works in an inpainting model too."
        )
    if vae is None:
        raise ValueError("There is no VAE: this checkpoint has none. Load one with Load VAE.")


@dataclass(frozen=True)
class _Tokens:
    tokens: Mapping[str, list]  # per tokenizer
    position: int | None  # of the trigger, in the encoding


def _tokenized(clip, sentences: Sequence[str], superclass: str) -> list[_Tokens]:
    """Sentences with {} in the trigger's place, or without a trigger. Raises ValueError where it is out of reach."""
    any_embeddings = {name: table[0] for name, table in text.embedding_tables(clip).items()}
    tokenizer = text.with_triggers(clip.tokenizer, {_PLACE: text.reading(clip, superclass, any_embeddings)})
    found = []
    for sentence in sentences:
        weighted = tokenizer.tokenize_with_weights(sentence.replace("{}", _PLACE))
        sections = {name: sections[0] for name, sections in weighted.items()}
        positions = text.trigger_positions(sections[text.placing(sections)])
        if len(positions) != sentence.count("{}"):
            raise ValueError(
                f"The text encoder takes 75 tokens and does not see the trigger in {sentence!r}. Shorten it."
            )
        tokens = {name: [token[0] for token in section] for name, section in sections.items()}
        found.append(_Tokens(tokens, positions[0] if positions else None))
    return found
