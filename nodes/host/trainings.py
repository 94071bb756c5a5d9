"""The trainings that this server remembers: the one that runs, and the last ones that ended.

Equal inputs come to an equal concept, so what was learned from them need not be learned again: a training goes on from
where it was, and one that has ended gives what it has at once, also another checkpoint of its. No model is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from PIL import Image
from torch import Tensor

from ...perfusion_core import Checkpoint, best_checkpoint
from .files import stamp
from .progress import run_again

_MANY = 4  # trainings; each holds up to some ten megabytes
_SAMPLED = 16  # numbers of a weight that tell it from others


class Unknown(LookupError):
    """A training that is not there any more."""


@dataclass(eq=False)
class Course:
    """How far a training has come, and what is asked of it from outside."""

    key: str  # tells its inputs from others, whatever the number of steps
    node_id: str | None = None  # where it runs or ran
    size: int = 0  # of its pictures, in pixels
    state: Mapping[str, Tensor] | None = None  # ``Training.state_dict``, to go on from
    earlier: Checkpoint | None = None  # the best one of a file that it goes on from
    checkpoints: list[Checkpoint] = field(default_factory=list)
    rows: list[tuple[int, list[Image.Image]]] = field(default_factory=list)  # sample pictures by step
    shown: list[dict[str, Any]] = field(default_factory=list)  # the same as the page finds them
    unfinished: Path | None = None  # its file, as long as it has not ended well
    goal: int = 0  # steps that it is to make in all
    running: bool = False
    stop: bool = False  # the user wants no more
    ended: bool = False  # well: at its goal or because the user wanted no more
    chosen: int | None = None  # the step whose checkpoint the user prefers
    saved: dict[str, tuple[Path, str]] = field(default_factory=dict)  # file and stamp by the name it was saved under

    @property
    def steps(self) -> int:
        return 0 if self.state is None or "losses" not in self.state else len(self.state["losses"])

    @property
    def best(self) -> Checkpoint:
        return best_checkpoint([self.earlier, *self.checkpoints] if self.earlier else self.checkpoints)

    @property
    def used(self) -> Checkpoint:
        """The user's choice, else the best."""
        return next((it for it in self.checkpoints if it.step == self.chosen), None) or self.best

    def saved_as(self, name: str) -> Path | None:
        """The file that this training was saved to under a name, if nobody has changed it since: another checkpoint of
        the training may replace it."""
        path, before = self.saved.get(name, (None, ""))
        return path if path is not None and path.is_file() and stamp([path]) == before else None

    def is_done(self, steps: int) -> bool:
        """Whether there is nothing to learn in a training of so many steps."""
        return self.ended and (self.steps == steps or self.goal == steps)


_remembered: list[Course] = []  # the latest one last


def course_of(key: str, steps: int) -> Course:
    """The training of these inputs as far as it has come, or a new one where that has gone too far."""
    for course in _remembered:
        if course.key == key and (course.steps <= steps or course.is_done(steps)):
            _remembered.remove(course)
            break
    else:
        course = Course(key)
    _remembered.append(course)
    del _remembered[:-_MANY]
    return course


def forget() -> None:
    _remembered.clear()


def ask_to_stop(node_id: str) -> None:
    """Lets the training in a node end well with what it has. Raises Unknown when none runs there."""
    for course in _remembered:
        if course.running and course.node_id == node_id:
            course.stop = True
            return
    raise Unknown("No training runs in this node any more.")


def go_on(key: str) -> None:
    """Lets the next run take a training up again that was stopped. Raises Unknown when it is not remembered."""
    course = _find(key)
    course.ended = False
    run_again(course.node_id)


def choose(key: str, step: int) -> None:
    """Lets the next run give the checkpoint after ``step``. Raises Unknown when it is not remembered."""
    course = _find(key)
    if step < 1 or all(checkpoint.step != step for checkpoint in course.checkpoints):
        raise Unknown(f"There is no checkpoint after step {step}.")
    course.chosen = step
    run_again(course.node_id)


def find(key: str | None) -> Course | None:
    return next((course for course in _remembered if course.key == key), None)


def _find(key: str) -> Course:
    if course := find(key):
        return course
    raise Unknown(
        "This training is not remembered any more, since ComfyUI was started again or trained others. "
        "A saved concept is trained on with continue_from."
    )


def key_of(model, vae, *inputs: Any) -> str:
    """Equal for equal models and inputs, which are tensors and what has a telling repr."""
    digest = hashlib.blake2b(digest_size=16)
    comfy.model_management.load_models_gpu([model])  # with its LoRAs in the weights
    sampling = model.get_model_object("model_sampling")
    kinds = [kind.__name__ for kind in type(sampling).__mro__]
    streamed = model.patches_uuid if model.patches else ""  # where the host keeps LoRAs beside the weights
    for part in (kinds, sampling.sigmas, streamed, *_samples(model.model), *_samples(vae.first_stage_model), *inputs):
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _samples(module: torch.nn.Module):
    for name, weight in module.named_parameters():
        yield f"{name} {tuple(weight.shape)}"
        yield weight.detach().flatten()[:_SAMPLED]
