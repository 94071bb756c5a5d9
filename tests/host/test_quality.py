"""The quality benchmark from end to end, in small and untrained; in processes of its own, as the picture book's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

REPO = Path(__file__).resolve().parents[2]

START = """
import os, sys
from dataclasses import replace
from pathlib import Path
os.environ["PERFUSION_CACHE"] = os.getcwd()
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from benchmarks.world import export, networks
networks.UNET["model_channels"] = 32
from benchmarks.world import reader
from benchmarks.world.individuals import any_individual
from benchmarks.quality import by_eye, evaluation, judging, methods, painter, run

torch.manual_seed(0)
text, unet, vae = networks.TextEncoder(networks.Vocabulary()), networks.make_unet(), networks.make_vae()
for model in (text, unet, vae):
    networks.initialise(model)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
parts = {"unet": unet.state_dict(), **export.as_the_host_has_it(text.state_dict()), "vae": vae.state_dict()}
Path("model.safetensors").write_bytes(export.demo_model(parts, text.vocabulary, ([[0, 0, 0]] * 16, [0, 0, 0])))
"""

TEACHING = """
painter.STEPS, painter.CAPTIONS, methods.PICTURES, run.CARD_SEEDS = 2, 200, 32, 1
methods.BETAS = methods.STRENGTHS = 0.5, 1.0
methods.MARKS = 0.5, 1.0
evaluation.OTHERS, run.CARD_PROMPTS, judging.CARD_PROMPTS, judging.SHOWN = 20, 2, 2, (0,)
reader.TRAINED.parent.mkdir(parents=True)
torch.save({"models": [reader.Reader().state_dict()]}, reader.TRAINED)

bench = run.Bench(Path("found"), painter.Painter(Path("model.safetensors")))
before = {name: weight.clone() for name, weight in bench.painter.unet.state_dict().items()}
known = run.methods(bench.locked_concept)
for label, method in known.items():
    if isinstance(method, methods.Perfusion):
        known[label] = replace(method, settings=replace(method.settings, steps=2))
for number in (0, 1, 2):
    bench.references(number)
    for label in known if number == 0 else ("perfusion", run.LOCKED, *run.ADDED):
        bench.alone(number, 0, label, known[label])
for name, weight in bench.painter.unet.state_dict().items():
    assert torch.equal(weight, before[name]), name  # no method leaves anything behind
plain = judging.read_piece(bench.painted("references", 0, 0))[0]["class word"]
pictures = {}
for label in known:
    latents, record = judging.read_piece(bench.painted(label, 0, 0))
    assert record["method"] == label and record["bytes"] > 0 and len(latents) == 2
    first, last = pictures[label] = list(latents.values())
    assert first.shape == plain.shape and last.isfinite().all()
    assert (first - last).abs().max() > 0.001 < (last - plain).abs().max(), label  # settings and teaching matter
for label in list(known)[1:]:
    assert (pictures[label][1] - pictures["perfusion"][1]).abs().max() > 0.001, label  # so does the method
bench.together(0, 0, "two")
bench.together(0, 0, "three")
bench.card()

def never(*_):
    raise AssertionError("what is finished is not made again")
bench.keep = never
bench.references(0)
bench.alone(0, 0, "perfusion", never)
bench.together(0, 0, "two")
bench.card()
run.write_scores(bench.folder, bench.painter)

chosen = by_eye.drawn(bench.folder, bench.painter)
assert {0, 1} <= set(chosen) and sum(map(len, chosen.values())) > 20
taken = {n: ",".join(str(i) for i, one in enumerate(of, 1) if one.taken) or "0" for n, of in chosen.items()}
same = by_eye.agreement(chosen, [f"{n}:{of}" for n, of in taken.items()])
assert same.endswith("the reader alone 0, the eye alone 0"), same
assert " both 0," in by_eye.agreement(chosen, [])
"""

SCORES = """
class Perfect(reader.Reader):  # knows whom a picture shows: its only colour is an index into what it was told
    def forward(self, views):
        things, place, style = told[round(float((views[0, 0, 0, 0] + 1) * 127.5))]
        things = (things + [None] * len(views))[: len(views)]
        embeddings = [self.of(torch.from_numpy(one.numbers())) if one else torch.zeros(64) for one in things]
        answers = [reader.truth(one, place, style) for one in things]
        read = {name: torch.nn.functional.one_hot(torch.tensor(column).clamp_min(0), len(values)).float()
                for (name, values), column in zip(reader.READ.items(), zip(*answers))}
        return torch.stack(embeddings), read

def numbered(count):
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 96, 96, 3))

assessor = evaluation.Assessor(Perfect())
for number in run.INDIVIDUALS:
    subject = painter.task(number)
    one, asked = subject.one, evaluation.prompts(subject)
    assert one.held_out and len({shown.place for shown in subject.photos} | set(subject.places)) == 8
    assert len(asked) == 8 and all(prompt.sentence.count("{}") == 1 for prompt in asked)
    assert {prompt.place for prompt in asked} <= set(subject.places)
    told = [([one, prompt.second] if prompt.second else [one], prompt.place, prompt.style) for prompt in asked]
    told.append(([one], "night", ""))
    common = assessor.common(numbered(9)[8:], one)
    scores = assessor.scores(numbered(8), one, asked, common)
    assert all(abs(share - 1) < 1e-5 for share in scores.values()), scores
    other = any_individual(np.random.default_rng(number), one.kind)
    told = [([other], {"night": "snow"}.get(prompt.place, "night"), "") for prompt in asked] + told[-1:]
    common = assessor.common(numbered(9)[8:], one)
    scores = assessor.scores(numbered(8), one, asked, common)
    wrong = scores["identified"], scores["place"], scores["thing"], scores["style"]
    assert not any(wrong) and scores["class"] == 1 and scores["likeness"] < 1, scores

    pair = [subject, painter.task(run.neighbours(number, 2)[1])]
    first, second = ones = [of.one for of in pair]
    asked = evaluation.prompts_together(pair)
    assert first.kind != second.kind and len({prompt.place for prompt in asked}) == 4
    told = [(ones, prompt.place, "") for prompt in asked]
    scores = assessor.together(numbered(4), ones)
    assert (scores["all"], scores["each"], scores["classes"], scores["mixing"]) == (1, 1, 1, 0)
    if first.colour != second.colour:
        told = [([replace(first, colour=second.colour), second], prompt.place, "") for prompt in asked]
        assert assessor.together(numbered(4), ones)["mixing"] > 0
    told = [([first], prompt.place, "") for prompt in asked]
    assert assessor.together(numbered(4), ones)["classes"] == 0
"""

REPORT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from benchmarks.quality import report
report.DOCS, report.SHOWN = Path("docs"), {0: "bear"}
report.DOCS.mkdir()
sys.argv[1:] = ["found"]
report.main()
"""

SEVERAL = """
import os, shutil, sys
from pathlib import Path
os.environ["PERFUSION_CACHE"] = os.getcwd()
sys.path.insert(0, sys.argv[1])
from benchmarks.world import networks
networks.UNET["model_channels"] = 32
from benchmarks.quality import evaluation, several
several.STEPS, several.DOCS = 2, Path("docs")
several.prompts_together = lambda tasks: evaluation.prompts_together(tasks)[:1]
asked = several.groups([0, 1, 2, 3, 8])
assert asked["twins"] == [(0, 8), (8, 0)] and (0, 8) not in asked["two"] and (1, 8) in asked["two"]
assert len(asked["three"]) == 7 and len(several.groups(range(16))["three"]) == several.MOST
for label in several.PERFUSION, several.LOCKED, several.LORA:
    for number in 3, 8:  # whatever they have learned
        shutil.copy(several.learned(Path("found"), label, number % 2), several.learned(Path("found"), label, number))
again = several.learned(Path("found"), several.LORA, 0)
shutil.copy(again, str(again).replace(" - 0.", " - 1."))  # of another seed

def groups(known):
    assert known == [0, 1, 2, 3, 8]
    return {kind: some[:1] for kind, some in asked.items()}

several.groups = groups
several.ProcessPoolExecutor = lambda workers, context, start, given: Here(start(*given))

class Here:
    def __init__(self, _): self.map = map
    def __enter__(self): return self
    def __exit__(self, *_): pass

sys.argv[1:] = ["found", "--model", "model.safetensors", "--seeds", "0"]
several.main()
painted = several.load_file(several.piece(Path("found"), (0, 1), 0))
assert set(painted) == {*several.WAYS, several.GENUINE}
for one in several.WAYS:
    for other in several.WAYS:
        assert one == other or not painted[one].equal(painted[other]), (one, other)
several.Several.pictures = None  # what is finished is not made again
several.main()
"""


QUICK = """
import contextlib, io, os, sys
from dataclasses import replace
from pathlib import Path
os.environ["PERFUSION_CACHE"] = os.getcwd()
sys.path.insert(0, sys.argv[1])
from benchmarks.world import networks
networks.UNET["model_channels"] = 32
from benchmarks.quality import ablations, evaluation, judging, methods, painter, run, tune
painter.STEPS, painter.CAPTIONS, evaluation.OTHERS, methods.PICTURES = 2, 200, 20, 32
methods.BETAS = methods.STRENGTHS = methods.MARKS = 0.5, 1.0
quick = methods.Perfusion()
quick = replace(quick, settings=replace(quick.settings, steps=2))
sys.argv[1:] = ["found", "--model", "model.safetensors"]

class Here:
    def __init__(self, folder, model, workers): run._open(folder, model)
    map = staticmethod(map)
    def __enter__(self): return self
    def __exit__(self, *_): pass

def said(main):
    with contextlib.redirect_stdout(io.StringIO()) as told:
        main()
    return told.getvalue()
"""

ABLATIONS = """
ablations.INDIVIDUALS, ablations.TEMPERATURES = (0, 1), (0.1, 0.5)
ablations.Perfusion = lambda: quick
ablations.crew = Here
tables = [part.splitlines() for part in said(ablations.main).split("| hypervolume")[-1].split("\\n\\n")]
assert [len(lines) for lines in tables] == [5, 4, 5], tables  # a heading of two lines, and the rows
painted = [judging.read_piece(bench.painted(label, 0, 0))[0]["0.5"] for bench, label in
           [(ablations._run(), "perfusion"), *((run.bench(), label) for label in ablations.METHODS)]]
assert all((one - other).abs().max() > 0.001 for one, other in zip(painted, painted[1:] + painted[:1]))
"""

TUNING = """
sys.argv[1] = "tuned"
word, lora, whole = "textual inversion, 0.005", "lora, rank 1, 0.0005", "dreambooth, batches of 16, 0.0003"
known = {"perfusion, values 0.02": quick, **{label: tune.variants()[label] for label in (word, lora, whole)}}
tune.variants, tune.crew = lambda: known, Here
lines = [line.split() for line in said(tune.main).splitlines() if "%" in line]
assert sorted(line[0] for line in lines if line[0] in ("two", "three")) == ["three"] * 3 + ["two"] * 3, lines
assert sum(" ".join(line[5:]) in known for line in lines) == 4, lines  # alone
for label, count in (("perfusion, values 0.02", 3), (lora, 3), (word, 1)):
    painted = judging.read_piece(run.bench().painted(f"two, {label}", 100, 0))[0]
    assert len(painted) == count, label
    first, *others = painted.values()
    assert all((first - other).abs().max() > 0.001 for other in others), label

def never(*_):
    raise AssertionError("what is finished is not made again")
run.Bench.keep = never
assert said(tune.main)
"""


def run(code: str, folder: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", code, str(REPO)], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_every_method_learns_and_what_it_paints_counts_for_whom_it_shows(tmp_path):
    run(START + SCORES + TEACHING, tmp_path)
    run(REPORT, tmp_path)
    run(SEVERAL, tmp_path)
    run(QUICK + ABLATIONS, tmp_path)
    run(QUICK + TUNING, tmp_path)
    figures = json.loads((tmp_path / "docs" / "quality.json").read_text())
    assert len(figures["hypervolume"]) == 12 and set(figures["demo_model"]) >= {"class", "place", "colour", "two"}
    assert set(figures["mixing"]) > {"perfusion", "lora, rank 4", "genuine scenes"}
    for page in ("quality.md", "quality-methods.md", "several.md"):
        text = (tmp_path / "docs" / page).read_text(encoding="utf-8")
        assert "[table:" not in text and "[share:" not in text
        for picture in {line.split("(")[-1].rstrip(")") for line in text.splitlines() if line.startswith("![")}:
            assert (tmp_path / "docs" / picture).exists() or picture == "quality-robot.jpg"
