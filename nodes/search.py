"""The search for a concept's best settings: a study of Optuna's with two objectives, CLIP-I and CLIP-T.

What is chosen in the end is the best harmonic mean of both, so a second study, of that alone, proposes what to try.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..perfusion_core.checkpoints import harmonic_mean

Pair = tuple[float, float]  # CLIP-I and CLIP-T of a picture
RANGES = {"beta": (0.3, 1.0), "key_lock": (0.0, 1.0), "temperature": (0.02, 0.4)}  # without what never serves
_FIRST = (  # tried before anything is proposed, each in place of the best settings so far; beta is the most telling one
    ("beta", 0.4), ("beta", 0.55), ("beta", 0.7), ("beta", 0.85), ("beta", 1.0),
    ("key_lock", 0.5), ("key_lock", 1.0), ("temperature", 0.06), ("temperature", 0.3),
)  # fmt: skip
_AGAIN = 1e-3  # how far the scores of the same pictures may lie apart from run to run
_REPEATS = 50  # proposals in a row of what is known already, until there is nothing new


@dataclass(frozen=True)
class Trial:
    """Settings, and how good the pictures with them are; ``given_up`` when not all were worth painting."""

    settings: Mapping[str, float]  # beta, key_lock, temperature
    scores: Sequence[Pair]
    given_up: bool = False

    @property
    def means(self) -> Pair:
        images, texts = zip(*self.scores, strict=True)
        return fmean(images), fmean(texts)

    @property
    def score(self) -> float:
        return harmonic_mean(*self.means)


def best_of(trials: Sequence[Trial]) -> Trial:
    """The highest score; the first of equals."""
    return max((trial for trial in trials if not trial.given_up), key=lambda trial: trial.score)


def front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other is better than in both objectives, from the highest CLIP-I to the highest CLIP-T."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: trial.means, reverse=True):
        if not trial.given_up and (not found or trial.means[1] > found[-1].means[1]):
            found.append(trial)
    return found


def hopeless(scores: Sequence[Pair], trials: Sequence[Trial]) -> bool:
    """Whether settings whose first pictures have these scores cannot reach the front: not even if every other picture
    came out as well as the best one so far of the same prompt and noise."""
    whole = np.array([trial.scores for trial in trials if not trial.given_up])  # (trials, pictures, 2)
    if not len(whole):
        return False
    hoped = np.concatenate([np.array(scores), whole.max(0)[len(scores) :]]).mean(0)
    return bool((whole.mean(1) > hoped).all(1).any())


def search(
    scored: Callable[[Mapping[str, float]], Iterator[Sequence[Pair]]],
    start: Mapping[str, float],
    pictures: int,
    budget: int,
    seed: int,
    file: Path,
) -> Iterator[list[Trial]]:
    """Yields the trials so far, each time there is another: as many as ``budget`` pictures allow, ``start`` first.

    scored: paints with settings and yields scores of some of a trial's ``pictures`` at a time; where they are hopeless,
    it is not asked for more. file: keeps the study. One that is there goes on, and its pictures count as painted. Yet
    it is trusted only when the start scores as it did then: otherwise the model, or something else that the scores come
    from, is another, and the search begins anew. The same seed and scores give the same trials, in one run or several.
    """
    study = _study(file)
    if first := _trials(study)[:1]:
        again = [pair for part in scored(start) for pair in part]
        if not np.allclose(again, first[0].scores, atol=_AGAIN):
            file.unlink()
            study = _study(file)
    trials, repeats, guide = _trials(study), 0, _guide(study)
    if trials:
        yield trials
    while sum(len(trial.scores) for trial in trials) + pictures <= budget and repeats < _REPEATS:
        asked, settings = _asked(guide, trials, start, seed)
        known = next((trial for trial in trials if trial.settings == settings), None)
        trial = known or _tried(settings, scored(settings), trials, pictures)
        _tell(study, guide, asked, trial, trials, again=known is not None)
        repeats = repeats + 1 if known else 0
        if not known:
            trials = [*trials, trial]
            yield trials


def _tried(
    settings: Mapping[str, float], parts: Iterator[Sequence[Pair]], trials: Sequence[Trial], pictures: int
) -> Trial:
    scores: list[Pair] = []
    for part in parts:
        scores += part
        if len(scores) < pictures and hopeless(scores, trials):
            return Trial(settings, scores, given_up=True)
    return Trial(settings, scores)


def _optuna() -> Any:
    """The package, imported for the first search."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(f"Perfusion Tune needs a package that is missing ({error}): pip install optuna") from error
    return optuna


def _study(file: Path) -> Any:
    """The study in the file; a new one when there is none, or none that can be read."""
    optuna = _optuna()
    journal = optuna.storages.journal
    try:
        # its other lock is a symbolic link, which Windows does not let everyone make
        backend = journal.JournalFileBackend(str(file), lock_obj=journal.JournalFileOpenLock(str(file)))
        storage = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(
            storage=storage, study_name="tune", directions=["maximize"] * 2, load_if_exists=True
        )
        _trials(study)
    except Exception:  # what a damaged file makes the library raise is nearly anything
        if not file.exists():
            raise
        file.unlink()
        return _study(file)
    return study


def _done(study: Any) -> list[Any]:
    """Without trials that were cut short, which earlier versions kept."""
    return study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.COMPLETE,))


def _trials(study: Any) -> list[Trial]:
    kept = [frozen.user_attrs for frozen in _done(study)]
    return [
        Trial(it["settings"], [(image, text) for image, text in it["scores"]], it["given_up"])
        for it in kept
        if not it["again"]
    ]


def _guide(study: Any) -> Any:
    """A study of the harmonic mean, with what the study with two objectives holds."""
    guide = _optuna().create_study(direction="maximize")
    for frozen in _done(study):
        guide.add_trial(_frozen(frozen.params, value=harmonic_mean(*frozen.values)))
    return guide


def _frozen(params: Mapping[str, float], **told: Any) -> Any:
    return _optuna().trial.create_trial(params=params, distributions=_space(), **told)


def _space() -> dict[str, Any]:
    kind = _optuna().distributions.FloatDistribution
    return {name: kind(low, high, log=name == "temperature") for name, (low, high) in RANGES.items()}


def _asked(guide: Any, trials: Sequence[Trial], start: Mapping[str, float], seed: int) -> tuple[Any, dict[str, float]]:
    """What Optuna keeps a trial by, and its settings. Which they are depends on the trials before it and the seed."""
    number = len(guide.get_trials(deepcopy=False))
    first = dict(start) if number == 0 else None
    if 0 < number <= len(_FIRST):
        first = {**best_of(trials).settings, **dict(_FIRST[number - 1 : number])}
    if first:
        guide.enqueue_trial({name: min(max(first[name], low), high) for name, (low, high) in RANGES.items()})
    guide.sampler = _sampler(seed + number)
    asked = guide.ask(_space())
    return asked, first or {name: round(value, 2) for name, value in asked.params.items()}


def _sampler(seed: int) -> Any:
    optuna = _optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=True)


def _tell(study: Any, guide: Any, asked: Any, trial: Trial, trials: Sequence[Trial], again: bool) -> None:
    """Keeps a trial. Optuna learns nothing from what was pruned: of one that was given up it is told what it would have
    come to, if it is as far from the others in all its pictures."""
    means = np.mean(trial.scores, 0)
    if trial.given_up:
        whole = np.array([other.scores for other in trials if not other.given_up])
        means += whole.mean((0, 1)) - whole[:, : len(trial.scores)].mean((0, 1))
    study.add_trial(_frozen(asked.params, values=means.tolist(), user_attrs={**asdict(trial), "again": again}))
    guide.tell(asked, harmonic_mean(*means.tolist()))
