"""Image-text scores and text encodings from a local open_clip model. Nothing is downloaded, no code in a file is run.

The package open_clip is imported when a model is loaded, so that the rest of the core works without it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

_CONFIG = "open_clip_config.json"
_FOLDER_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_RESIZING = {"interpolation": "bicubic", "resize_mode": "shortest"}
_PREPROCESSING = ("mean", "std", *_RESIZING)
_NOT_COMPARED = {"logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size"}  # cosines need none
_IMAGES, _TEXTS = 16, 64  # per batch
_ADVICE = (
    f"Take open_clip_model.safetensors and {_CONFIG} of a model such as laion/CLIP-ViT-B-32-laion2B-s34B-b79K from "
    "Hugging Face and put both into one folder."
)


class ImageTextModelError(ValueError):
    """An image-text model that cannot be used; the message says why and what to do."""


class ImageTextModel:
    """An open_clip model with its preprocessing and tokenizer, in float32; ``load_image_text_model`` makes it.

    ``name`` is the folder's, or the architecture of a bare file. All results are on the CPU.
    """

    def __init__(self, name: str, clip: Any, tokenizer: Any, preprocessing: Mapping[str, Any], device: torch.device):
        self.name, self.clip, self.tokenizer, self.device = name, clip.to(device), tokenizer, device
        self._mean, self._std = (
            torch.tensor(preprocessing[key], dtype=torch.float32, device=device).expand(3)[:, None, None]
            for key in ("mean", "std")
        )
        self._interpolation, self._resize_mode = preprocessing["interpolation"], preprocessing["resize_mode"]
        if self._interpolation not in ("bicubic", "bilinear") or self._resize_mode not in ("shortest", "squash"):
            raise ValueError(f"pictures resized by {self._interpolation}, {self._resize_mode} are not supported")
        size = clip.visual.image_size
        self._size: tuple[int, int] = tuple(size) if isinstance(size, (tuple, list)) else (size, size)

    @torch.no_grad()
    def embed_images(self, pictures: Tensor) -> Tensor:
        """(n, d) unit vectors of pictures (n, height, width, 3) in 0..1. Raises ValueError for anything else."""
        if pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.numel():
            raise ValueError(f"These pictures are of shape {tuple(pictures.shape)}, not (n, height, width, 3).")
        if not ((pictures >= -0.01) & (pictures <= 1.01)).all():
            raise ValueError("These pictures hold NaN or numbers beyond 0..1. Look at what makes them.")
        return self._unit([self.clip.encode_image(self._prepared(batch)) for batch in pictures.split(_IMAGES)])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) unit vectors of texts, each cut to what the model reads. Raises ValueError when there are none."""
        return self._unit([self.clip.encode_text(batch) for batch in self.tokenize(texts).split(_TEXTS)])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(n, tokens) ids with start, end and padding. Raises ValueError when there are no texts."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"One or more texts are needed, in a list; this is {texts!r}.")
        tokens = self.tokenizer(list(texts))
        if tokens.max() >= self.clip.vocab_size:
            raise ImageTextModelError(f"The tokenizer in {self.name} is of another model. Get the folder anew.")
        return tokens.to(self.device)

    def _prepared(self, pictures: Tensor) -> Tensor:
        """(n, 3, rows, columns) as the model sees pictures (n, height, width, 3)."""
        height, width = pictures.shape[1:3]
        rows, columns = resized = self._size
        if self._resize_mode == "shortest":
            wide = width * rows >= height * columns
            resized = (rows, width * rows // height) if wide else (height * columns // width, columns)
        images = pictures.movedim(-1, 1).to(self.device, torch.float32)
        images = F.interpolate(images, resized, mode=self._interpolation, antialias=True).clamp(0, 1)
        top, left = round((resized[0] - rows) / 2), round((resized[1] - columns) / 2)
        return (images[..., top : top + rows, left : left + columns] - self._mean) / self._std

    def _unit(self, batches: list[Tensor]) -> Tensor:
        vectors = F.normalize(torch.cat(batches).cpu(), dim=-1)
        if not torch.isfinite(vectors).all():
            raise ImageTextModelError(f"The model {self.name} gives NaN, so its file is damaged. Get it anew.")
        return vectors


def load_image_text_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> ImageTextModel:
    """Reads a folder in open_clip's layout (open_clip_config.json beside the weights), or a bare file of weights.

    Weights are .safetensors, or .pt and .bin that hold nothing but tensors. A bare file's architecture is the one
    its name starts with, else the one of open_clip's that has its shapes. Shapes tell neither QuickGELU from GELU nor
    how pictures are normalised. There a bare file has what the published weights of its architecture have in common,
    or those of them that its name speaks of ("openai", "laion2b_s34b_b79k"); failing that, GELU and CLIP's numbers.
    "openai" or "quickgelu" in the name, or the three numbers OpenAI keeps beside its weights, always mean QuickGELU.

    Raises ImageTextModelError for anything else, and for models whose text tower or tokenizer would be downloaded.
    """
    try:
        import open_clip  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImageTextModelError(
            f"Scores need a package that is missing ({error}): pip install open_clip_torch"
        ) from error
    path = Path(path)
    if path.is_dir():
        name, claim = path.name, _CONFIG
        config, preprocessing = _read_config(path)
        weights = _read_weights(_weights_in(path))
    else:
        weights = _read_weights(path)
        name, config, preprocessing = _architecture(open_clip, path, weights)
        claim = f"the architecture {name}"
    try:
        _refuse_downloads(path, config)
        if different := _differences(open_clip, config, weights):
            raise ImageTextModelError(
                f"The weights of {path.name} do not fit {claim}: {_listed(different)}. Let the name of a file "
                f"start with its architecture, such as ViT-B-32, or keep it in a folder with its own {_CONFIG}."
            )
        clip = _build(open_clip, config, weights).eval().requires_grad_(False)
        clip.load_state_dict({key: weights[key] for key in weights.keys() - _NOT_COMPARED}, strict=False)
        defaults = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, **_RESIZING}
        tokenizer = _tokenizer(open_clip, path, config["text_cfg"])
        return ImageTextModel(name, clip, tokenizer, {**defaults, **preprocessing}, torch.device(device))
    except (ImageTextModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a config from outside makes open_clip raise nearly anything
        raise ImageTextModelError(f"open_clip cannot make the model {path.name} ({error}). {_ADVICE}") from error


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


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model, preprocessing) as the folder's open_clip_config.json has them."""
    try:
        content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
        if not all(isinstance(part, dict) for part in (preprocessing, config["vision_cfg"], config["text_cfg"])):
            raise TypeError("its parts are not as open_clip writes them")
    except Exception as error:
        raise ImageTextModelError(f"The folder {folder.name} has no usable {_CONFIG} ({error}). {_ADVICE}") from error
    return config, {key: preprocessing[key] for key in _PREPROCESSING if preprocessing.get(key) is not None}


def _weights_in(folder: Path) -> Path:
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ImageTextModelError(f"The folder {folder.name} holds no {' or '.join(_FOLDER_WEIGHTS)}. {_ADVICE}")


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ImageTextModelError(f"There is no model {file.name!r}. {_ADVICE}")
    kind = file.suffix.lower()
    if kind not in (".safetensors", ".pt", ".bin"):
        raise ImageTextModelError(f"{file.name} is neither .safetensors nor .pt nor .bin. {_ADVICE}")
    try:
        content: Any = load_file(file) if kind == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # damaged files make both libraries raise nearly anything
        reason = "is damaged or holds more than tensors; code in a file is never run"
        if "TorchScript" in str(error):
            reason = "is a TorchScript program, as OpenAI's own files are; only tensors are read"
        raise ImageTextModelError(f"{file.name} {reason}. {_ADVICE}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    items = content.items() if isinstance(content, dict) else ()
    weights = {str(name).removeprefix("module."): part for name, part in items if isinstance(part, Tensor)}
    if other := other_kind(weights):
        raise ImageTextModelError(f"{file.name} is {other}, not an image-text model of open_clip's. {_ADVICE}")
    return weights


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


def _architecture(open_clip: Any, file: Path, weights: dict[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(name, model, preprocessing) of a bare file, as ``load_image_text_model`` says."""
    stem = _plain(file.stem)
    named = [name for name in open_clip.list_models() if re.match(_plain(name) + r"(?!\d)", stem)]
    name = max(named, key=len) if named else _with_shapes(open_clip, file, weights)
    config = open_clip.get_model_config(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in [t for t in tags if _plain(t) in stem] or tags]
    common = {
        key: value for key, value in (published or [{}])[0].items() if all(p.get(key) == value for p in published)
    }
    says_quick = re.search("openai|quick_?gelu", stem) or "input_resolution" in weights
    if says_quick or common.get("quick_gelu") or config.get("quick_gelu"):
        config["quick_gelu"], name = True, name.removesuffix("-quickgelu") + "-quickgelu"
    return name, config, {key: common[key] for key in _PREPROCESSING if key in common}


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]+", "_", name.lower())


def _with_shapes(open_clip: Any, file: Path, weights: dict[str, Tensor]) -> str:
    """The one architecture with CLIP's own tokenizer and towers that has these shapes."""
    different = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        foreign = any(key.startswith(("timm_", "hf_")) for key in (*config["vision_cfg"], *config["text_cfg"]))
        if not foreign and "multimodal_cfg" not in config and not name.endswith("-quickgelu"):
            different[name] = _differences(open_clip, config, weights)
    nearest = sorted(different, key=lambda name: len(different[name]))
    exact = [name for name in nearest if not different[name]]
    if len(exact) == 1:
        return exact[0]
    near = "; ".join(f"{name} ({_listed(different[name], 1)})" for name in nearest[:3])
    found = (
        f"may be {' or '.join(exact)}" if exact else f"has the shapes of no architecture that open_clip knows: {near}"
    )
    raise ImageTextModelError(
        f"{file.name} {found}. Let its name start with its architecture, or keep it in a folder with its {_CONFIG}."
    )


def _refuse_downloads(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ImageTextModelError for a model that open_clip would fetch parts of, or that brings code of its own."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if text.get("hf_model_name") or "multimodal_cfg" in config:
        raise ImageTextModelError(f"{path.name} has a text tower that is not open_clip's own. {_ADVICE}")
    if not re.fullmatch(r"[\w.-]*", str(vision.get("timm_model_name") or "")):
        raise ImageTextModelError(f"{path.name} would download its image tower. {_ADVICE}")
    if text.get("hf_tokenizer_name") and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ImageTextModelError(
            f"{path.name} has a tokenizer of its own, and nothing is downloaded. Put its weights, {_CONFIG} and all "
            "files of its tokenizer (tokenizer.json, tokenizer_config.json, ...) into one folder."
        )
    if unknown := (text.get("tokenizer_kwargs") or {}).keys() - {"clean", "strip_sep_token"}:
        raise ImageTextModelError(f"{path.name} asks for the tokenizer setting {min(unknown)!r}. {_ADVICE}")


def _build(open_clip: Any, config: Mapping[str, Any], names: Iterable[str]) -> Any:
    """The model of a config with random weights, its text tower where the weights have theirs."""
    in_tower = any(name.startswith("text.") for name in names)
    parts = {key: value for key, value in config.items() if key != "custom_text"}
    if "timm_model_name" in config["vision_cfg"]:
        parts["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    return (open_clip.CustomTextCLIP if in_tower else open_clip.CLIP)(**parts)


def _differences(open_clip: Any, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[str]:
    """How the weights differ in names and shapes from those of the config's model."""
    with torch.device("meta"):
        model = _build(open_clip, config, weights).state_dict()
    expected, found = (
        {name: "x".join(map(str, part.shape)) for name, part in parts.items() if name not in _NOT_COMPARED}
        for parts in (model, weights)
    )
    return [
        f"{name} is {found.get(name, 'missing')} instead of {expected.get(name, 'nothing')}"
        for name in sorted(expected | found)
        if expected.get(name) != found.get(name)
    ]


def _listed(different: Sequence[str], count: int = 3) -> str:
    more = f" and {len(different) - count} more" if len(different) > count else ""
    return ", ".join(different[:count]) + more


def _tokenizer(open_clip: Any, folder: Path, text: Mapping[str, Any]) -> Any:
    settings = {"context_length": text.get("context_length", 77), **(text.get("tokenizer_kwargs") or {})}
    if not text.get("hf_tokenizer_name"):
        return open_clip.SimpleTokenizer(**settings)
    local = {"local_files_only": True, "trust_remote_code": False}
    return open_clip.tokenizer.HFTokenizer(str(folder), tokenizer_mode=text.get("tokenizer_mode"), **settings, **local)
