"""The picture book's networks, in a process of their own: training replaces some of the host's functions."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

START = """
import os, sys
os.environ["PERFUSION_CACHE"] = os.getcwd()
sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from safetensors.torch import load_file
from benchmarks.world import export, networks, pool, train_autoencoder, train_diffusion, training
from benchmarks.world.individuals import CLASSES, FIRST_STAGE, individual

torch.manual_seed(0)
vocabulary = networks.Vocabulary()
text, unet, vae = networks.TextEncoder(vocabulary), networks.make_unet(), networks.make_vae()
for model in (text, unet, vae):
    networks.initialise(model)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
ones = [individual(np.random.default_rng(seed), CLASSES[seed]) for seed in range(4)]
prompts = ["a photo of <one> on the beach", "a picture of a red mug and <two> at night"]
kinds = [[one.kind for one in ones[:2]], [one.kind for one in ones[2:]]]
attributes, class_rows = pool.numbers_of([ones[:2], ones[2:]], kinds, vocabulary)
rows = vocabulary.rows(prompts)
encoding = text(rows, attributes, class_rows)
"""

NAMES = """
assert (rows == -1).sum(1).tolist() == [1, 0] and (rows == -2).sum(1).tolist() == [0, 1]
changed = text(rows, attributes.roll(1, -1), class_rows) != encoding
at = [int((rows[0] == -1).nonzero()), int((rows[1] == -2).nonzero())]
for line, position in zip(changed.any(-1), at):
    assert not line[:position].any() and line[position]  # a causal encoder: only from the name on
plain = vocabulary.rows(["a photo of a bear on the beach"])
same = text(plain, attributes[:1], class_rows[:1]) == text(plain, attributes[1:], class_rows[1:])
assert same.all()  # words do not depend on whom names mean
assert not encoding[rows == 1].any()
same = [vocabulary.rows([f"a photo of {word} on the beach"]) for word in ("<one>", ones[0].kind)]
unknown, kind = (text(row, 0 * attributes[:1], class_rows[:1]) for row in same)
torch.testing.assert_close(unknown, kind)  # a name that says nothing is its class word
assert len(vocabulary.of("bear")) == 1 and vocabulary.of("xylophone")[0] == len(vocabulary.ids)
"""

SHORTENED = """
noisy, times = torch.randn(2, *networks.LATENT), torch.tensor([100.0, 800.0])
context, options = networks.shortened(encoding)
assert context.shape[1] < 25
whole = unet(noisy, times, encoding, transformer_options={})
torch.testing.assert_close(unet(noisy, times, context, transformer_options=options), whole, rtol=1e-4, atol=1e-4)
assert (unet(noisy, times, context, transformer_options={}) - whole).abs().max() > 0.01
for length in (35, 36):  # 36 positions at the coarse level
    long = torch.nn.functional.pad(torch.randn(2, length, 192), (0, 0, 0, 77 - length))
    context, options = networks.shortened(long)
    assert context.shape[1] != 36
    torch.testing.assert_close(unet(noisy, times, context, transformer_options=options),
                               unet(noisy, times, long, transformer_options={}), rtol=1e-4, atol=1e-4)
"""

READING = """
perfect = torch.where(attributes > 0, 20.0, -20.0)
assert train_diffusion.reading_error(perfect.flatten(0, 1), attributes.flatten(0, 1)) < 0.01
assert train_diffusion.reading_error(-perfect.flatten(0, 1), attributes.flatten(0, 1)) > 3
batch = pool.Batch(None, None, rows, attributes, class_rows)
seen = []
def reader(encodings):
    seen.append(encodings)
    return torch.zeros(len(encodings), attributes.shape[-1])
train_diffusion.reading_loss(reader, encoding, batch)
assert torch.equal(torch.cat(seen), torch.cat([encoding[0][rows[0] == -1], encoding[1][rows[1] == -2]]))
"""

EXPORT = """
images, mean, std = torch.rand(2, 3, 96, 96), torch.randn(16), torch.rand(16) + 0.5
before, spread = train_autoencoder.moments(vae, images)
back = vae.decode(before)
export.normalise(vae, mean, std)
after, spread_after = train_autoencoder.moments(vae, images)
torch.testing.assert_close(after, (before - mean[:, None, None]) / std[:, None, None], rtol=1e-3, atol=1e-3)
torch.testing.assert_close(spread_after, spread - 2 * std.log()[:, None, None], rtol=1e-3, atol=1e-3)
torch.testing.assert_close(vae.decode(after), back, rtol=1e-3, atol=1e-3)

states = text.state_dict(), unet.state_dict()
parts = {"unet": states[1], **export.as_the_host_has_it(states[0]), "vae": vae.state_dict()}
file = export.FOLDER.parent / "demo.safetensors"
file.write_bytes(export.demo_model(parts, vocabulary, ([[0.0] * 3] * 16, [0.0] * 3)))
assert file.stat().st_size < 16 * 2**20
export.restore(file)
try:
    export.restore(file)
    raise AssertionError("a training is never overwritten")
except SystemExit as refusal:
    assert "Move it away" in str(refusal)
on = training.Training([networks.make_vae()], 1e-3, 0.9)
on.load(export.AUTOENCODER)
assert on.steps == 0 and all(torch.equal(a, b) for a, b in zip(on.master, on.averaged))
kept = torch.load(export.AUTOENCODER)["models"] + torch.load(train_diffusion.START)["models"]
for model, state in zip((vae, text, unet), kept):
    for name, weight in model.state_dict().items():
        assert (state[name] - weight).norm() <= 0.02 * weight.norm(), name
    model.load_state_dict(state)
train_diffusion.START.unlink()  # the second stage begins with the first one's model, which does not know its new words
early = networks.TextEncoder(networks.Vocabulary(FIRST_STAGE))
networks.initialise(early)
parts |= export.as_the_host_has_it(early.state_dict())
file.write_bytes(export.demo_model(parts, early.vocabulary, ([[0.0] * 3] * 16, [0.0] * 3)))
export.restore(file)
late = networks.TextEncoder(vocabulary)
late.load_state_dict(train_diffusion.newest()[0][0])
assert vocabulary.of("fish") != vocabulary.of("bird") != vocabulary.of("xylophone")
early.load_state_dict(export.as_it_was_trained(export.read(kept := load_file(file)), kept["tokens"].tolist(),
                                               early.vocabulary.ids))
for some in (prompts, ["a fish and a bird"]):
    told = [encoder(encoder.vocabulary.rows(some), attributes[: len(some)], pool.numbers_of(
        [ones[:2], ones[2:]], kinds, encoder.vocabulary)[1][: len(some)]) for encoder in (early, late)]
    assert torch.equal(*told)
# A model that knew fewer words is trained further: their rows stay, and so does the row of all others.
models = {"text": {"embeddings.token_embedding.weight": torch.arange(6.0).reshape(3, 2)}, "naming": {}}
table = export.as_it_was_trained(models, [7, 3], [3, 5, 7])["table.weight"]
assert table.tolist() == [[2, 3], [4, 5], [0, 1], [4, 5]]
"""

READER = """
from benchmarks.world import card, reader
from benchmarks.world.oracle import verdict

class PerfectReader(reader.Reader):  # knows what each thing is in the picture whose number is its only colour
    def forward(self, views):
        things, place = told[round(float((views[0, 0, 0, 0] + 1) * 127.5))]
        assert len(views) == len(things)
        embeddings = [self.of(reader.as_numbers([one]))[0] if one else torch.zeros(64) for one in things]
        answers = [reader.truth(one, place, "") for one in things]
        return torch.stack(embeddings), {
            name: torch.nn.functional.one_hot(torch.tensor(column).clamp_min(0), len(of)).float()
            for (name, of), column in zip(reader.READ.items(), zip(*answers))}

prompts = card.prompts(60)
assert {len(prompt.things) for prompt in prompts} == {1, 2, 3}
assert {one.kind for prompt in prompts for one in prompt.things} == set(CLASSES)
pictures = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 96, 96, 3))
told = [(prompt.things[::-1], prompt.place) for prompt in prompts]  # in whatever order they stand
assert set(card.hits(PerfectReader(), pictures, prompts).values()) == {1.0}
some = [(individual(np.random.default_rng(9), prompt.things[0].kind), *prompt.things[1:-1], None) for prompt in prompts]
told = [(things[: len(prompt.things)], prompt.place) for things, prompt in zip(some, prompts)]
# the first is somebody else, and the last of several is not there
wrong = card.hits(PerfectReader(), pictures, prompts)
assert wrong["two"] == wrong["three"] == 0 and wrong["class"] == wrong["place"] == 1 and wrong["colour"] < 0.5

critic, images = reader.Reader().requires_grad_(False), torch.rand(2, 3, 48, 48, requires_grad=True)
assert reader.likeness_loss(critic, images, images) == 0
unlike = reader.likeness_loss(critic, images, images.flip(-1).detach())
assert unlike > 0.01 and torch.autograd.grad(unlike, images)[0].abs().sum() > 0
torch.manual_seed(0)
without = train_autoencoder.reconstruction_loss(vae.to(networks.precision()), images.detach())
torch.manual_seed(0)
assert train_autoencoder.reconstruction_loss(vae, images.detach(), critic.to(networks.precision())) > without

perfect, alone = PerfectReader(), [(prompt.things[0], prompt.place) for prompt in prompts]
told = [((one,), place) for one, place in alone]
assert set(verdict(perfect, pictures, alone).values()) == {1.0}
told = [((individual(np.random.default_rng(9), one.kind),), place) for one, place in alone]
assert verdict(perfect, pictures, alone)["nearest"] < 0.2

random, banks = np.random.default_rng(0), {kind: reader.others(kind, reader.BANK, 0) for kind in CLASSES}
lessons = [reader.lesson(number) for number in range(40)]
batch = reader.Batch.of(lessons, banks, random)
shown = [one for _, _, some in lessons for one in some]
told = [(one, place) for one, place in zip(shown, batch.answers) if one]
assert len(batch.views) == len(shown) > len(batch.known) == len(told)  # none is told in gray, or where it is taken away
assert torch.equal(batch.candidates[:, 0], reader.as_numbers([one for one, _ in told]))
assert [int(row[0]) for row in batch.answers[batch.known]] == [CLASSES.index(one.kind) for one, _ in told]
mine, near = batch.candidates[:, :1], batch.candidates[:, 1 + reader.RIVALS :]
parts = ((near != mine).float() @ reader._PARTS.T.float() > 0).sum(-1)
assert parts.max() == 1 and 0.5 < parts.float().mean() < 1  # nearly the same: another shape, or colour, ...
far = ((batch.candidates[:, 1 : 1 + reader.RIVALS] != mine).float() @ reader._PARTS.T.float() > 0).sum(-1)
assert far.float().mean() > 3
candidates = torch.nn.functional.normalize(batch.candidates, dim=-1)
right, wrong = (reader.identity_loss(candidates[:, k], candidates, batch) for k in (0, 9))
assert right < wrong
everybody = torch.ones_like(candidates)  # who is the same is no rival, so less than all are as near
assert reader.identity_loss(everybody[:, 0], everybody, batch) < np.log(batch.candidates.shape[1]) - 0.05
for prompt in prompts:
    words = prompt.sentence.split()
    assert all(one.colour in words and one.kind in words for one in prompt.things)
    for one, left in zip(prompt.things, prompt.unsaid):
        assert left.shape != one.shape or len(prompt.things) > 1 or one.shape not in words
"""

ELSEWHERE = """
from pathlib import Path
pool._AT_FIRST, train_diffusion.BATCH = 32, 4
train_autoencoder.TRAINED.parent.mkdir(parents=True)
torch.save({"models": [vae.state_dict()]}, train_autoencoder.TRAINED)
sys.argv[1:] = ["32", "carried"]
pool.main()
here = pool.Pool(train_autoencoder.trained_vae(), vocabulary)
pool.FOLDER = Path("carried")
pool.Pool.grow = None  # where it was carried to, nothing is painted
there = pool.Pool(train_autoencoder.trained_vae(), vocabulary)
a, b = (one.batch(np.random.default_rng(1), 4) for one in (here, there))
assert there.count == 32 and all(map(torch.equal, a, b)) and a.latents.std() > 0.5

things = np.array([len(here.planned(index)[0]) for index in range(32)])
assert set(things) == {1, 2, 3} and np.allclose(here.likely(), things / things.sum())

pool.Pool.grow = lambda pool: None
shown, train_diffusion.show = [], lambda *_: shown.append(1)
sys.argv[1:] = ["--minutes", "0.001", "--workers", "1"]
train_diffusion.main()
assert shown and torch.load(train_diffusion.TRAINED)["steps"] >= 1
steps = torch.load(train_diffusion.TRAINED)["steps"]
sys.argv[1:] = ["--steps", str(steps + 2), "--workers", "2"]
train_diffusion.main()
assert torch.load(train_diffusion.TRAINED)["steps"] == steps + 2
train_diffusion.main()  # there is nothing left to do
assert len(shown) == 2
"""

VALUES = """
import types
import torch.nn.functional as F
from benchmarks.quality.variants import PlainWordTraining
from benchmarks.world import teach, transformers
from perfusion_core import ConceptSet, EncodedPrompts, TrainingSettings
model = transformers.make_transformer("joint").double().requires_grad_(False)
for parameter in model.parameters():
    if not parameter.any():
        torch.nn.init.normal_(parameter, std=0.05)
noisy, times = torch.randn(2, *networks.LATENT).double(), torch.tensor([100.0, 800.0])
target, sentences = torch.randn_like(noisy), ["a photo of <one> on the beach", "a photo of <one>"]
bear = text.table.weight[vocabulary.of("bear")[0]].detach()

class Trainee:
    templates, zero_padded, wiring = [[0], [1]], True, transformers.joint_wiring(model)
    def superclass_embeddings(self):
        return {"l": bear}
    def encode(self, templates, embeddings):
        texts, new = [sentences[template] for template in templates], {"<one>": embeddings["l"]}
        encodings, places = teach.Model.encode(types.SimpleNamespace(text=text), texts, new)
        return EncodedPrompts(encodings[:, :8].double(), places)
    def loss(self, photos, prompts, generator):
        self.wiring.prepare(prompts.encodings)
        return F.mse_loss(model(noisy[photos], times[photos], prompts.encodings), target[photos])

trainee = Trainee()
training = PlainWordTraining(trainee, torch.eye(192), "<one>", "bear", "demo", TrainingSettings(accumulation=1))
with trainee.wiring:
    training.step()
concept = training.concept()
assert torch.equal(concept.token_embeddings["l"], bear)
assert len(concept.value_deltas) == transformers.BLOCKS and all(d.any() for d in concept.value_deltas.values())

context, words = trainee.encode([0], {"l": bear}).encodings, vocabulary.rows(["a photo of bear on the beach"])
torch.testing.assert_close(context, text(words, attributes[:1], class_rows[:1])[:, :8].double())  # its superclass word
given = noisy[:1], times[:1], context
plain, seen = model(*given), {}
linears = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
for name, part in linears.items():
    part.register_forward_hook(lambda part, given, out, name=name: seen.__setitem__(name, (given[0], out)))
model(*given)
before, wiring = dict(seen), transformers.joint_wiring(model, ConceptSet([concept], 0.95, 1e-3, zero_padded=True))
with wiring:
    wiring.prepare(context)
    edited = model(*given)
after = dict(seen)
assert (edited - plain).abs().max() > 1e-4 and torch.equal(model(*given), plain)
at = words[0].tolist().index(vocabulary.of("bear")[0])
for name, part in linears.items():
    x, out = after[name]
    wanted = F.linear(x, part.weight, part.bias)
    if name.endswith("context_block.attn.qkv"):
        wanted[:, at, -transformers.WIDTH :] += concept.value_deltas[name.removesuffix(".context_block.attn.qkv")]
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
for name in ("context_embedder", "joint_blocks.0.context_block.attn.qkv", "joint_blocks.0.x_block.attn.qkv"):
    assert torch.equal(after[name][0], before[name][0])  # nothing ahead of the first values is touched
assert not torch.equal(after["joint_blocks.0.x_block.attn.proj"][0], before["joint_blocks.0.x_block.attn.proj"][0])

cross = transformers.make_transformer("cross")
cross(noisy.float(), times, encoding[:, :8].detach()).square().mean().backward()
assert cross.final_layer.linear.weight.grad.shape == (64, transformers.WIDTH)
"""


def test_values_alone_change_nothing_but_the_values_of_the_word(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", START + VALUES, str(REPO)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_a_training_elsewhere_has_the_same_scenes_and_ends_in_time(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", START + ELSEWHERE, str(REPO)], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_the_networks_do_what_training_takes_for_granted(tmp_path):
    checks = "".join((START, NAMES, SHORTENED, READING, EXPORT, READER))
    ran = subprocess.run([sys.executable, "-c", checks, str(REPO)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
