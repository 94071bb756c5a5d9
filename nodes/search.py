"""The search for a concept's best settings: a study of Optuna's with two objectives, CLIP-I and CLIP-T."""

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
_BETAS = (0.5, 0.6, 0.8, 0.9)  # tried right after the start: beta is the most telling setting
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
    trials, repeats = _trials(study), 0
    if trials:
        yield trials
    while sum(len(trial.scores) for trial in trials) + pictures <= budget and repeats < _REPEATS:
        asked, settings = _asked(study, start, seed)
        known = next((trial for trial in trials if trial.settings == settings), None)
        try:
            trial = known or _tried(settings, scored(settings), trials, pictures)
        except BaseException:  # a cancel, too: the next run asks for the same once more
            study.tell(asked, state=_optuna().trial.TrialState.FAIL)
            raise
        _tell(study, asked, trial, trials, again=known is not None)
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
    return study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.COMPLETE,))


def _trials(study: Any) -> list[Trial]:
    kept = [frozen.user_attrs for frozen in _done(study)]
    return [
        Trial(it["settings"], [(image, text) for image, text in it["scores"]], it["given_up"])
        for it in kept
        if not it["again"]
    ]


def _asked(study: Any, start: Mapping[str, float], seed: int) -> tuple[Any, dict[str, float]]:
    """What Optuna keeps a trial by, and its settings. Which they are depends on the trials before it and the seed."""
    number = len(_done(study))
    study.sampler = _sampler(seed + number)
    if first := [dict(start), *({**start, "beta": beta} for beta in _BETAS)][number : number + 1]:
        study.enqueue_trial({name: min(max(first[0][name], low), high) for name, (low, high) in RANGES.items()})
    asked = study.ask()
    proposed = {
        name: round(asked.suggest_float(name, low, high, log=name == "temperature"), 2)
        for name, (low, high) in RANGES.items()
    }
    return asked, first[0] if first else proposed


def _sampler(seed: int) -> Any:
    optuna = _optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=True)


def _tell(study: Any, asked: Any, trial: Trial, trials: Sequence[Trial], again: bool) -> None:
    """Keeps a trial. Optuna neither prunes nor learns from what was pruned where there are two objectives: for one that
    was given up it is told what it would have come to, if it is as far from the others in all its pictures."""
    means = np.mean(trial.scores, 0)
    if trial.given_up:
        whole = np.array([other.scores for other in trials if not other.given_up])
        means += whole.mean((0, 1)) - whole[:, : len(trial.scores)].mean((0, 1))
    for name, value in {**asdict(trial), "again": again}.items():
        asked.set_user_attr(name, value)
    study.tell(asked, means.tolist())
