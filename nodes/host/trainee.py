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

from ...perfusion_core import Concept, ConceptSet, EncodedPrompts, draw_timesteps, masked_mse
from ...perfusion_core.device import sent
from . import text
from .adapter import network_dtype, receiver
from .families import family_of
from .model import base_model, encoding_width, wiring_of, without_concepts
from .sampling import decoded
from .sentences import ReadAnew, ReadOnce
from .trainable import (
    attention_options,
    attention_with_backward,
    bypassed,
    checkpointed,
    out_of_place,
    rotation_with_backward,
    trainable_through,
)

_SAMPLING_STEPS, _GUIDANCE = 20, 3.5  # of previews; the host's own
NEGATIVE = ""  # prompt of previews


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

    @property
    def distinct_sentences(self) -> list[str]:
        return list(dict.fromkeys(sentence for own in self.sentences for sentence in own))

    def mirrored(self) -> Subject:
        masks = None if self.masks is None else torch.cat([self.masks, self.masks.flip(2)])
        photos = torch.cat([self.photos, self.photos.flip(2)])
        sentences = [*self.sentences, *self.sentences]
        return replace(self, photos=photos, masks=masks, sentences=sentences, flip=False)


class ComfyTrainee:
    """``perfusion_core.training.Trainee`` for the host's diffusion models."""

    def __init__(
        self,
        model,
        texts: ReadAnew | ReadOnce,
        vae,
        subject: Subject,
        latents: Tensor,
        patchers: Sequence,
        autocast: torch.dtype | None = None,
    ):
        """latents (photos, channels, h, w), or with one frame (photos, channels, 1, h, w), of the subject's photos in
        the model's own scale; patchers: of all that is in use; autocast: the network's dtype."""
        self._family = family_of(model)
        self.zero_padded = self._family.zero_padded
        self._model, self._texts, self._vae, self._patchers = model.model, texts, vae, patchers
        self._device, self._autocast = model.load_device, autocast
        self._size = subject.photos.shape[1]
        self._latents = latents.to(self._device)
        self._masks, self._unmasked_weight = None, subject.unmasked_weight
        self._min_timestep = subject.min_timestep
        if subject.masks is not None:
            self._masks = F.interpolate(subject.masks[:, None].clone(), size=latents.shape[-2:], mode="area")
            self._masks = self._masks.to(self._device).unflatten(1, (1,) * (latents.ndim - 3))
        self._sentences = subject.distinct_sentences
        self.templates = [[self._sentences.index(sentence) for sentence in own] for own in subject.sentences]
        self.wiring = wiring_of(model)

    def superclass_embeddings(self) -> Mapping[str, Tensor]:
        return self._texts.start()

    def encode(self, templates: Sequence[int], token_embeddings: Mapping[str, Tensor]) -> EncodedPrompts:
        return self._texts.encode([self._sentences[template] for template in templates], token_embeddings)

    def loss(self, photos: Tensor, prompts: EncodedPrompts, generator: torch.Generator) -> Tensor:
        """The error of the network's own prediction, whatever it predicts (eps, v, ...), at drawn timesteps.

        denoised = A(x, σ) + c(σ) · prediction, so (denoised − x0) / c is prediction minus target.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        sampling = self._model.model_sampling
        photos = sent(photos, self._device)
        x0 = self._latents[photos]
        length = len(sampling.sigmas)  # 1000 mostly; LCM has 50
        timesteps = draw_timesteps(len(photos), length, generator, length * self._min_timestep // 1000)
        sigma = sampling.sigmas.to(self._device)[sent(timesteps, self._device)]
        noise = sent(torch.randn(x0.shape, generator=generator), self._device)
        denoised = self._denoised(sampling.noise_scaling(sigma, noise, x0), sigma, prompts)
        scale = sampling.calculate_denoised(sigma, torch.ones_like(x0[:, :1]), torch.zeros_like(x0[:, :1]))
        masks = None if self._masks is None else self._masks[photos]
        return masked_mse(denoised.float() / scale, x0 / scale, masks, self._unmasked_weight)

    @torch.no_grad()
    def pictures(self, sentences: Sequence[str], concept: Concept, seed: int) -> Tensor:
        """What the concept looks like now, with the Loader's defaults: IMAGE (sentences, size, size, 3).

        Every sentence holds {} in the trigger's place and starts from the same noise.
        """
        self.wiring.concepts = ConceptSet([concept], zero_padded=self.zero_padded)
        embeddings = {name: embedding.to(self._device) for name, embedding in concept.token_embeddings.items()}
        latents = [self._sample(self._texts.encode([sentence, NEGATIVE], embeddings), seed) for sentence in sentences]
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
            both = self._denoised(torch.cat([x, x]), sigma.repeat(2), prompts, _GUIDANCE)
            positive, negative = both.float().chunk(2)
            return negative + self._family.cfg * (positive - negative)

        start = sampling.noise_scaling(sigmas[:1], noise, torch.zeros_like(noise), max_denoise=True)
        return sample_dpmpp_2m(denoise, start, sigmas, disable=True)

    def _denoised(self, x: Tensor, sigma: Tensor, prompts: EncodedPrompts, guidance: float = 1.0) -> Tensor:
        """guidance: how much a prompt counts, where the network is told that; 1 while it learns."""
        if self._family.knows_padding:
            return self._denoised_at_once(x, sigma, prompts, guidance)
        lengths = prompts.words.sum(1)  # texts of one length at a time: such a family knows no padding
        alike = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
        parts = [
            self._denoised_at_once(x[rows], sigma[rows], _only(prompts, rows, lengths[rows[0]]), guidance)
            for rows in alike
        ]
        return torch.cat(parts)[torch.cat(alike).argsort()]

    def _denoised_at_once(self, x: Tensor, sigma: Tensor, prompts: EncodedPrompts, guidance: float = 1.0) -> Tensor:
        context, joint = prompts.encodings.to(network_dtype(self._model)), self._family.joint
        words = prompts.words if self._family.zero_padded else None
        if joint is not None:
            words = joint.words(context)
        self.wiring.prepare(context.flatten(0, 1)[None] if self._family.in_a_row else context, words=words)
        adm = self._model.encode_adm(
            device=self._device, pooled_output=prompts.pooled, width=self._size, height=self._size
        )
        conditioning = {} if adm is None else {"y": adm}
        if joint is not None:
            conditioning |= joint.more(context)
        if joint is not None and joint.guided:
            conditioning["guidance"] = torch.full((len(x),), guidance, device=self._device)
        if self._family.masked:
            conditioning["attention_mask"] = prompts.words.int()
        with torch.autocast(self._device.type, self._autocast) if self._autocast else nullcontext():
            return self._model.apply_model(
                x, sigma, c_crossattn=context, transformer_options=attention_options(), **conditioning
            )


def _only(prompts: EncodedPrompts, rows: Tensor, length: Tensor) -> EncodedPrompts:
    """These prompts, which have so many words."""
    encodings, pooled = prompts.encodings[rows, :length], prompts.pooled
    return EncodedPrompts(encodings, prompts.trigger_positions, pooled if pooled is None else pooled[rows])


@contextmanager
def open_trainee(
    model,
    clip,
    vae,
    subject: Subject,
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
    offset: bool = False,
    previews: Sequence[str] = (),
) -> Iterator[ComfyTrainee]:
    """The models loaded and made trainable through, with the photos encoded; afterwards everything is as before.

    autocast: bf16 or fp16 for the network's arithmetic, None for the model's own; checkpointing: less memory, more
    time; offset: whether that is learned, from texts that are encoded once, with the sentences of ``previews``. Raises
    ValueError for models that cannot be trained on.
    """
    check_trainable(model, clip, vae, offset)
    if subject.flip:
        subject = subject.mirrored()
    latents = torch.cat([vae.encode(photo[None]) for photo in subject.photos])
    if latents.shape[1:2] != (model.get_model_object("latent_format").latent_channels,):
        raise ValueError(f"This VAE makes latents {tuple(latents.shape[1:])}, not this model's. Use its own VAE.")
    model, clip = _static(without_concepts(model), clip)
    patchers, texts = [model] if offset else [model, clip.patcher], None
    if offset:
        comfy.model_management.load_models_gpu([clip.patcher], force_full_load=True)
        text.prepare_encoders(clip)
        texts = ReadOnce(clip, subject.superclass, [*subject.distinct_sentences, *previews, NEGATIVE])
    comfy.model_management.load_models_gpu(patchers, force_full_load=True)
    with _out_of_reach(patchers):
        comfy.model_management.free_memory(1e30, model.load_device)  # the VAE and what else is not needed
    latents = model.model.process_latent_in(latents.float())  # by the format that a node may have patched in
    networks, family = [patcher.model for patcher in patchers], family_of(model)
    with ExitStack() as stack:
        stack.enter_context(trainable_through(*networks))
        stack.enter_context(out_of_place(*networks))
        stack.enter_context(attention_with_backward())
        stack.enter_context(rotation_with_backward())
        if checkpointing:
            stack.enter_context(checkpointed(*networks))
        if family.in_forward:
            stack.enter_context(bypassed(model.model.diffusion_model.get_submodule(family.adapter)))
        if texts is None:
            text.prepare_encoders(clip)
            sentences = subject.distinct_sentences
            texts = ReadAnew(clip, subject.superclass, sentences, receiver(model), model.load_device)
        else:
            texts.open(receiver(model), family, model.load_device)
        latents = latents.clone()  # clones are no inference tensors
        trainee = ComfyTrainee(model, texts, vae, subject, latents, patchers, autocast)
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


def check_trainable(model, clip, vae, offset: bool = False, key_freedom: float = 0.0) -> None:
    """Raises ValueError for models that cannot be trained on, in this way, or do not belong together."""
    encoding_width(model)  # raises for a model of no known family
    family = family_of(model)
    if family.offset and not offset:
        raise ValueError(f"{family.title}'s text encoder is too large to train through. Set text_encoder to auto.")
    if family.joint and key_freedom:
        raise ValueError(
            f"key_freedom is not for {family.title}: there only values are learned, and keys are never edited. Set it "
            "to 0."
        )
    if foreign := text.encoders(clip).keys() - family.texts:
        raise ValueError(
            f"This text encoder ({', '.join(sorted(foreign))}) is not this model's ({base_model(model)}). Connect the "
            "one that belongs to it."
        )
    if family.joint and (width := text.offset_width(clip)) != encoding_width(model):
        raise ValueError(
            f"This text encoder gives {width} numbers for a word, and {family.title} takes {encoding_width(model)}. "
            "Load it with Load CLIP of the type that belongs to the model."
        )
    channels = model.model.model_config.unet_config.get(family.channels)
    expected = model.get_model_object("latent_format").latent_channels
    if model.model.concat_keys or (family.channels and channels != expected):
        raise ValueError(
            f"This model takes {channels} channels, not {expected}: it is made for inpainting, editing, upscaling or "
            "video. Train on the base checkpoint; the concept then works in an inpainting model too."
        )
    if vae is None:
        raise ValueError("There is no VAE: this checkpoint has none. Load one with Load VAE.")
