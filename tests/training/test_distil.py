"""Distillation: a question that is heard is answered, and thought of, as when it is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen2_audio.checkpoints.load import load_model
from qwen2_audio.errors import UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.chat_template import render
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.training.alignment import heard_at
from qwen2_audio.training.config import GroupConfig, TrainConfig
from qwen2_audio.training.losses import hear, target_losses
from qwen2_audio.training.trainer import Trainer, train
from tests.training.plans import losses, silent, small_plan


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> TrainConfig:
    return small_plan(tmp_path, folder)


def test_spoken_questions_are_answered_as_written_ones(plan: TrainConfig, folder: Path) -> None:
    """Distilled, the divergence is that of the definition, and it falls."""
    data = Path(plan.data)
    row = json.loads(data.read_text().splitlines()[0])
    question, answer = row["messages"]
    alone = {"messages": [{**question, "content": question["content"][:1]}, answer], "spoken": "the dog barked"}
    typed = {"messages": [{"role": "user", "content": "the dog barked"}, answer]}
    data.write_text("\n".join(json.dumps(row) for row in (row, alone, {**row, "spoken": "the dog barked"}, typed)))
    trainer = Trainer(replace(plan, distil=1.0, projector=GroupConfig(), clip_norm=1e3), silent)
    batch = trainer.stage.pack([trainer.stage.item(position) for position in range(4)])
    assert batch.in_writing is not None
    assert torch.equal(batch.targets[batch.aloud], batch.in_writing.targets)
    assert 0 < len(batch.aloud) == 2 * batch.targets_of_sequences[1] < len(batch.targets)
    model, reader = trainer.model.eval(), load_model(folder)
    with torch.no_grad():
        heard = target_losses(model, batch, hear(model, batch), 1.0)
        plain = target_losses(model, batch, hear(model, batch))
        written = Conversation().user("the dog barked").assistant("the cat")
        ids = trainer.stage.dataset._processor.tokenizer.encode(render(written, generation_prompt=False).rstrip("\n"))
        wanted = reader(torch.tensor(ids * 2), [len(ids)] * 2)[batch.in_writing.predict_at].log_softmax(-1)
        ours = model.language_model(model.embed(batch.ids, hear(model, batch)), batch.lengths)
        ours = ours[batch.predict_at[batch.aloud]].log_softmax(-1)
    assert ids * 2 == batch.in_writing.ids.tolist()
    expected = plain.index_copy(0, batch.aloud, (wanted.exp() * (wanted - ours)).sum(-1))
    torch.testing.assert_close(heard, expected, atol=1e-5, rtol=1e-5)
    of_typed = heard[-(len(wanted) // 2) :]
    torch.testing.assert_close(of_typed, torch.zeros_like(of_typed), atol=1e-5, rtol=0)  # nothing is learnt yet
    data.write_text(json.dumps(alone))
    train(replace(plan, distil=1.0, steps=30), silent)
    assert losses(plan)[-1] < 0.5 * losses(plan)[0]
    with pytest.raises(UsageError, match="distil needs the language model as it was"):
        replace(plan, distil=1.0, language_model=GroupConfig("full"))


@pytest.mark.parametrize("recompute", [False, True])
def test_layers_come_to_think_what_they_think_when_they_read(plan: TrainConfig, folder: Path, recompute: bool) -> None:
    """Distilled states: the distance is that of the definition, nothing for what was written, and it falls. Compared are those
    between question and answer, those of the answer, and those where the words of the question are heard."""
    data = Path(plan.data)
    question, answer = json.loads(data.read_text().splitlines()[6])["messages"]
    alone = {"messages": [{**question, "content": question["content"][:1]}, answer], "spoken": "the dog?"}
    answer["content"] = (
        "the man was walking in the rain and the dog was in the world"  # more than the tokens that count more
    )
    typed = {"messages": [{"role": "user", "content": "the man walked"}, answer]}
    data.write_text("\n".join(map(json.dumps, (typed, alone))))
    plan = replace(plan, distil=1.0, distil_states=0.5, projector=GroupConfig(), clip_norm=1e3, recompute=recompute)
    trainer = Trainer(plan, silent)
    batch = trainer.stage.pack([trainer.stage.item(position) for position in range(2)])
    model, reader = trainer.model.eval(), load_model(folder)
    audio, written = hear(model, batch), batch.in_writing
    assert written is not None
    with torch.no_grad():
        both = target_losses(model, batch, audio, 1.0, 0.5)
        divergence = target_losses(model, batch, audio, 1.0)
        ours = states(model, model.embed(batch.ids, audio), batch.lengths)
        its = states(reader, reader.embed(written.ids, None), written.lengths)
    count = len(batch.targets) // 2  # of one answer; both have the same
    assert count > 8
    first = written.lengths[0]
    line = trainer.stage.dataset._processor.tokenizer.encode("the dog?")
    spoken = [
        first + i for i in range(len(written.ids) - first) if written.ids[first + i :][: len(line)].tolist() == line
    ]
    told = [0, 1, 3, 4]  # "th", "e", "d", "og"; not the space, nor the mark at the end
    words = [spoken[0] + i for i in told]
    names = reader.language_model.model.embed_tokens.weight
    assert audio is not None
    placeholders = (batch.ids == model.config.audio_token_id).nonzero()[:, 0]
    heard = placeholders[heard_at(audio - names.mean(0), names[line][told] - names.mean(0))].tolist()
    assert len(heard) == len(words)
    places = [
        [*words_at, *range(at - 4, at + count)]
        for words_at, at in zip((heard, words), (int(pack.predict_at[count]) for pack in (batch, written)), strict=True)
    ]
    variances = [state[written.predict_at[0] - 4 :][: count + 4] for state in its]  # of the whole pack: both rows
    variances = [
        torch.cat([a, state[places[1]]]).var(0, correction=0) + 1e-4 for a, state in zip(variances, its, strict=True)
    ]
    far = [
        ((mine[places[0]] - theirs[places[1]]) ** 2 / variance).clamp(max=25).mean(-1)
        for mine, theirs, variance in zip(ours, its, variances, strict=True)
    ]
    of_words, between, apart = torch.stack(far).mean(0).split([len(words), 4, count])
    expected = divergence * torch.where(torch.arange(2 * count) % count < 8, 3.0, 1.0)
    expected[count:] += 0.5 * apart
    expected[count] += 0.5 * (8 * between.sum() + 3 * of_words.sum())
    torch.testing.assert_close(both, expected, atol=1e-4, rtol=1e-4)
    assert both[:count].abs().max() < 1e-4  # nothing is learnt yet
    assert min(apart.min(), of_words.min()) > 0
    data.write_text(json.dumps(alone))
    train(replace(plan, steps=30), silent)
    assert losses(plan)[-1] < 0.5 * losses(plan)[0]
    with pytest.raises(UsageError, match="distil_states goes beside distil"):
        replace(plan, distil=0.0)


def test_the_words_of_a_question_are_those_of_its_own_turn(plan: TrainConfig) -> None:
    """Though the same was said before, and is said again in the answer."""
    data = Path(plan.data)
    question, answer = json.loads(data.read_text().splitlines()[6])["messages"]
    alone, same = {**question, "content": question["content"][:1]}, {**answer, "content": "the dog? the man"}
    before = [{"role": "user", "content": "the dog?"}, {**same, "loss": False}]
    data.write_text(json.dumps({"messages": [*before, alone, same], "spoken": "the dog?"}))
    stage = Trainer(plan, silent).stage
    written = stage.item(0).in_writing
    assert written is not None
    tokenizer = stage.dataset._processor.tokenizer
    assert tokenizer.decode([written.ids[i] for i in written.asked]) == "thedog"
    rest = tokenizer.decode(written.ids[written.asked[0] :])
    assert rest.count("the dog?") == 2


def states(model: Qwen2Audio, embeddings: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """What every layer of the language model gives."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: found.append(output))
        for layer in model.language_model.model.layers
    ]
    model.language_model.model(embeddings, lengths)
    for hook in hooks:
        hook.remove()
    return found
