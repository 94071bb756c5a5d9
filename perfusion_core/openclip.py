"""Image-text scores and text encodings from a local open_clip model. Nothing is downloaded, no code in a file is run.

The package open_clip is imported when a model is loaded, so that the rest of the core works without it.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

_CONFIG = "open_clip_config.json"
_FOLDER_WEIGHTS = (  # those that open_clip looks for first
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth",
)  # fmt: skip
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
_IMAGES, _TEXTS = 16, 64  # per batch
_ADVICE = (
    f"Take open_clip_model.safetensors and {_CONFIG} of a model such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K from "
    "Hugging Face and put both into one folder."
)
_NAMING = (
    "Let the name of a bare file start with its architecture as open_clip lists it, such as "
    "ViT-L-14-laion2b_s32b_b82k.safetensors or ViT-B-32-quickgelu.safetensors, or keep it in a folder with its own "
    f"{_CONFIG}."
)


class ImageTextModelError(ValueError):
    """An image-text model that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class ImageTextModel:
    """An open_clip model in float32; ``load_image_text_model`` makes it. All results are on the CPU."""

    name: str
    clip: Any
    tokenizer: Any
    preprocess: Callable[[Tensor], Tensor]  # of a picture (3, height, width) in bytes
    device: torch.device

    @torch.no_grad()
    def embed_images(self, pictures: Tensor) -> Tensor:
        """(n, d) unit vectors of pictures (n, height, width, 3) in 0..1. Raises ValueError for anything else."""
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.numel():
            raise ValueError(f"These pictures are of shape {tuple(pictures.shape)}, not (n, height, width, 3).")
        if not ((pictures >= -0.01) & (pictures <= 1.01)).all():
            raise ValueError("These pictures hold NaN or numbers beyond 0..1. Look at what makes them.")
        images = rearrange(pictures.clamp(0, 1).mul(255).round().byte().cpu(), "n h w c -> n c h w")
        batches = (torch.stack(list(map(self.preprocess, batch))).to(self.device) for batch in images.split(_IMAGES))
        return self._unit(map(self.clip.encode_image, batches))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) unit vectors of texts, each cut to what the model reads. Raises ValueError when there are none."""
        return self._unit(map(self.clip.encode_text, self.tokenize(texts).split(_TEXTS)))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(n, tokens) ids with start, end and padding. Raises ValueError when there are no texts."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"One or more texts are needed, in a list; this is {texts!r}.")
        tokens: Tensor = self.tokenizer(list(texts))
        if tokens.max() >= self.clip.vocab_size:
            raise ImageTextModelError(f"The tokenizer in {self.name} is of another model. Get the folder anew.")
        return tokens.to(self.device)

    def _unit(self, batches: Iterable[Tensor]) -> Tensor:
        vectors = F.normalize(torch.cat(list(batches)).cpu(), dim=-1)
        if not torch.isfinite(vectors).all():
            raise ImageTextModelError(f"The model {self.name} gives NaN, so its file is damaged. Get it anew.")
        return vectors


def load_image_text_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> ImageTextModel:
    """Reads a folder in open_clip's layout (open_clip_config.json beside the weights), or a bare file of weights.

    Weights are .safetensors, or .pt, .pth and .bin that hold nothing but tensors. A bare file's name starts with its
    architecture as open_clip lists it. When the rest is the tag of published weights, as in
    ViT-L-14-laion2b_s32b_b82k.safetensors, activation and preprocessing are those weights'; otherwise open_clip's
    defaults for the architecture.

    Raises ImageTextModelError for anything else, and for models whose text tower or tokenizer would be downloaded.
    """
    try:
        import open_clip  # type: ignore[import-untyped]
        from torchvision.transforms import Compose, ToPILImage  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImageTextModelError(
            f"Scores need a package that is missing ({error}): pip install open_clip_torch"
        ) from error
    path, device = Path(path), torch.device(device)
    try:
        _refuse_other_kinds(_weights(path))
        name, options = (f"local-dir:{path}", {}) if path.is_dir() else _named(open_clip, path)
        text = _text_config(open_clip, name, path)
        clip, transform = open_clip.create_model_from_pretrained(name, device=device, **options)
        local = {"local_files_only": True, "trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
        tokenizer = open_clip.get_tokenizer(name, **local)
        preprocess = Compose([ToPILImage(), transform])
        preprocess(torch.zeros(3, 2, 2, dtype=torch.uint8))  # numbers that do not fit show only in use
    except (ImageTextModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a config from outside makes open_clip raise nearly anything
        advice = _ADVICE if path.is_dir() else _NAMING
        reason = textwrap.shorten(str(error), 400)  # it may list every weight of a model
        raise ImageTextModelError(f"open_clip cannot make the model {path.name} ({reason}). {advice}") from error
    return ImageTextModel(path.name, clip.train(False).requires_grad_(False), tokenizer, preprocess, device)


def image_similarity(model: ImageTextModel, pictures: Tensor, photos: Tensor) -> Tensor:
    """CLIP-I of the paper's sec. 5: (n,) mean cosine of each picture to the photos, all as embed_images takes them."""
    return (model.embed_images(pictures) @ model.embed_images(photos).T).mean(1)


def text_similarity(model: ImageTextModel, pictures: Tensor, texts: Sequence[str]) -> Tensor:
    """CLIP-T of the paper's sec. 5: (n,) cosine of the i-th picture, as embed_images takes it, to the i-th text."""
    if len(texts) != len(pictures):
        raise ValueError(f"There are {len(texts)} texts for {len(pictures)} pictures. Give one text per picture.")
    return (model.embed_images(pictures) * model.embed_texts(texts)).sum(1)


def encode_tokens(
    model: ImageTextModel, texts: Sequence[str], layer: int = -1, final_norm: bool = True, padding: int = 0
) -> Tensor:
    """(n, 77, width): what the text tower's ``layer`` gives for every token, as cross-attention gets it.

    The last layer is -1, ``final_norm`` applies the tower's last layer norm, ``padding`` is the id after the end token
    (it changes nothing up to there). As ComfyUI has it:

    - SD1: layer=-1, padding=49407, which is the end token; with clip skip 2 layer=-2
    - SD2: layer=-2
    - SDXL: layer=-2, final_norm=False, for CLIP-L with padding=49407

    Raises ValueError for a layer that is not there, ImageTextModelError for a tower unlike Stable Diffusion's.
    """
    tower = getattr(model.clip, "text", model.clip)
    end = getattr(model.tokenizer, "eot_token_id", None)
    if end is None or tower.attn_mask is None:
        raise ImageTextModelError(
            f"{model.name} reads text in another way than Stable Diffusion. Choose another model."
        )
    layers = len(tower.transformer.resblocks)
    if not -layers <= layer <= -1:
        raise ValueError(f"The layers of {model.name} are -{layers} to -1; {layer} is none of them.")
    tokens = model.tokenize(texts)
    after_end = (tokens == end).flip(1).cumsum(1).flip(1) == 0
    tokens[after_end] = padding
    encodings = [
        model.clip.forward_intermediates(
            text=batch, text_indices=[layer], normalize_intermediates=final_norm, intermediates_only=True
        )["text_intermediates"][0]
        for batch in tokens.split(_TEXTS)
    ]
    return torch.cat(encodings).cpu()


def _weights(path: Path) -> Path:
    """The file that open_clip reads."""
    if not path.is_dir():
        return path
    for name in _FOLDER_WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise ImageTextModelError(f"The folder {path.name} holds no {' or '.join(_FOLDER_WEIGHTS)}. {_ADVICE}")


def _named(open_clip: Any, file: Path) -> tuple[str, dict[str, Any]]:
    """(open_clip's name for the model, how to load it) of a bare file, whose name says it."""
    listed = open_clip.list_models()
    named = [name for name in listed if re.match(re.escape(name) + r"(?!\d)", file.stem, re.IGNORECASE)]
    if not named:
        raise ImageTextModelError(f"The name of {file.name} does not say what the file is. {_NAMING}")
    name = max(named, key=len)
    published = open_clip.get_pretrained_cfg(name, file.stem[len(name) :].strip("-_. "))
    preprocessing = {f"image_{key}": published.get(key) for key in ("mean", "std", "interpolation", "resize_mode")}
    return name, {"pretrained": str(file), "force_quick_gelu": published.get("quick_gelu", False), **preprocessing}


def _refuse_other_kinds(file: Path) -> None:
    """Raises ImageTextModelError for all but the weights of both towers: open_clip reads the file only after that."""
    if not file.is_file():
        raise ImageTextModelError(f"There is no model {file.name!r}. {_ADVICE}")
    if file.suffix.lower() not in _WEIGHTS:
        raise ImageTextModelError(f"{file.name} is neither .safetensors nor .pt, .pth or .bin. {_ADVICE}")
    try:
        names = _names(file)
    except Exception as error:  # damaged files make both libraries raise nearly anything
        reason = "is damaged or holds more than tensors; code in a file is never run"
        if "TorchScript" in str(error):
            reason = "is a TorchScript program, as OpenAI's own files are; only tensors are read"
        raise ImageTextModelError(f"{file.name} {reason}. {_ADVICE}") from error
    if other := other_kind(names):
        raise ImageTextModelError(f"{file.name} is {other}, not an image-text model of open_clip's. {_ADVICE}")


def _names(file: Path) -> list[str]:
    """Of the tensors in a file of weights, also where a training kept them among other things."""
    if file.suffix.lower() == ".safetensors":
        with safe_open(file, framework="pt") as weights:
            return list(weights.keys())
    content = torch.load(file, "meta", weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    items = content.items() if isinstance(content, dict) else ()
    return [str(name) for name, part in items if isinstance(part, Tensor)]


def other_kind(names: Iterable[str]) -> str | None:
    """What a file with weights of these names is in place of an image-text model; None for one."""
    every = "\n".join(names)
    images, texts = re.search("visual|vision_model", every), "token_embedding" in every
    if "lora" in every:
        return "a LoRA"
    if "diffusion_model." in every:
        return "a checkpoint of an image generator"
    if images and texts:
        return "a CLIP in the layout of transformers" if "vision_model." in every else None
    return "an image encoder alone" if images else "a text encoder alone" if texts else "another kind of file"


def _text_config(open_clip: Any, name: str, path: Path) -> Mapping[str, Any]:
    """The text tower's part of a config. Raises ImageTextModelError when a part of the model would be downloaded."""
    try:
        config = open_clip.get_model_config(name)
        vision, text = ({**config[tower]} for tower in ("vision_cfg", "text_cfg"))
    except Exception as error:
        raise ImageTextModelError(f"{path.name} has no usable {_CONFIG} ({error}). {_ADVICE}") from error
    if text.get("hf_model_name") or "multimodal_cfg" in config:
        raise ImageTextModelError(f"{path.name} has a text tower that is not open_clip's own. {_ADVICE}")
    if not re.fullmatch(r"[\w.-]*", str(vision.get("timm_model_name") or "")):
        raise ImageTextModelError(f"{path.name} would download its image tower. {_ADVICE}")
    if text.get("hf_tokenizer_name") and not any((path / f"tokenizer{end}.json").is_file() for end in ("", "_config")):
        raise ImageTextModelError(
            f"{path.name} has a tokenizer of its own, and nothing is downloaded. Put its weights, {_CONFIG} and all "
            "files of its tokenizer (tokenizer.json, tokenizer_config.json, ...) into one folder."
        )
    if unknown := (text.get("tokenizer_kwargs") or {}).keys() - {"clean", "strip_sep_token"}:
        raise ImageTextModelError(f"{path.name} asks for the tokenizer setting {min(unknown)!r}. {_ADVICE}")
    return text
