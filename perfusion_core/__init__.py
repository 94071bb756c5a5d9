"""Perfusion (Tewel et al., SIGGRAPH 2023, "Key-Locked Rank One Editing") in pure torch; knows nothing of ComfyUI."""

from .checkpoints import Checkpoint, best_checkpoint
from .concept import Concept
from .concept_file import ConceptFileError, load_concept, save_concept
from .covariance import Covariance
from .denoising import draw_timesteps, masked_mse
from .edit import ConceptSet, EditedEncoding
from .pasting import paste_subject
from .training import EncodedPrompts, Trainee, Training, TrainingSettings, train_concept
from .training_file import load_training, save_training
from .wiring import Values, ValueWiring, Wiring, cross_attention_layers

__all__ = [
    "Checkpoint",
    "Concept",
    "ConceptFileError",
    "ConceptSet",
    "Covariance",
    "EditedEncoding",
    "EncodedPrompts",
    "Trainee",
    "Training",
    "TrainingSettings",
    "ValueWiring",
    "Values",
    "Wiring",
    "best_checkpoint",
    "cross_attention_layers",
    "draw_timesteps",
    "load_concept",
    "load_training",
    "masked_mse",
    "paste_subject",
    "save_concept",
    "save_training",
    "train_concept",
]
