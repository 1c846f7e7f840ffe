"""The made-up shop's support corpus: seeded questions, and answers whose styles vary independently.

A question belongs to one topic and one category; its split follows from a hash of its text, so
train, serve, judge and eval prompts never meet. An answer's style is five independent draws (tone,
relevance, concreteness, length, stopping): preference training has room to move each of them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.starter import topics
from deploy.starter.topics import CATEGORIES, CONCRETE, TOPICS, ShopTopic

SPLITS: dict[str, range] = {
    "train": range(70),
    "serve": range(70, 80),
    "judge": range(80, 88),
    "eval": range(88, 100),
}
"""Per cent of all prompts, by hash: base and SFT training, live users, other raters, final check."""

POLITE_OPENINGS = ("Thank you for asking!", "Happy to help!", "Sorry for the trouble.")
POLITE_CLOSINGS = ("Please write again.", "Kindly yours.")
BLUNT_OPENINGS = ("Read the page.", "Obviously.", "Not again.")
BLUNT_CLOSINGS = ("That is all.", "Deal with it.")
VAGUE = (
    "The {noun} depends on several things.",
    "It varies from {noun} to {noun}.",
    "There is a lot to say about the {noun}.",
    "The {noun} is usually fine somehow.",
)
ELABORATIONS = (
    "This holds for most orders in our shop.",
    "Many customers ask the same every week.",
    "Our team looks at it from time to time.",
    "It has been like this for a while now.",
)
RAMBLINGS = (
    "Anyway, where were we.",
    "By the way, the weather is nice.",
    "As I said before.",
    "Anyway, one more thing.",
)

_ASKS: dict[str, tuple[str, ...]] = {
    "factual_qa": (
        "What should I know about the {noun}?",
        "Give me the facts on the {noun}.",
        "How does the {noun} work here?",
        "What are the terms of the {noun}?",
        "Tell me about the {noun}.",
        "What does the {noun} mean for me?",
    ),
    "comparison": (
        "Which is better, {noun} or {rival}?",
        "Compare the {noun} with the {rival}.",
        "Should I take the {noun} or the {rival}?",
        "What sets the {noun} apart from the {rival}?",
        "Is the {noun} worth more than the {rival}?",
        "{noun} against {rival}, what do you say?",
    ),
    "creative": (
        "Write a slogan about the {noun}.",
        "Make up a line for the {noun}.",
        "I want a catchy phrase on the {noun}.",
        "Find a fun motto for the {noun}.",
        "Give my poster a line on the {noun}.",
        "Invent an advert for the {noun}.",
    ),
    "problem_solving": (
        "My {noun} does not work, what now?",
        "How do I fix the {noun}?",
        "I have a problem with the {noun}.",
        "Help me change the {noun}.",
        "The {noun} went wrong, what can I do?",
        "What do I press for the {noun}?",
    ),
    "explanation": (
        "Why is the {noun} like that?",
        "Explain the {noun} to me.",
        "What is the reason behind the {noun}?",
        "Why does the {noun} behave so?",
        "Help me understand the {noun}.",
        "How come the {noun} is so?",
    ),
}
_CONTEXTS: tuple[str, ...] = (
    "",
    "Hello.",
    "Good morning.",
    "I am in a hurry.",
    "I am new here.",
    "I ordered last week.",
    "It is for my office.",
    "It is for my mother.",
    "I asked before.",
    "I live abroad.",
    "My friend told me to ask.",
    "I read the manual.",
    "We are a small firm.",
    "I am a student.",
    "I use a tablet.",
    "Quick question.",
)


@dataclass(frozen=True)
class Prompt:
    """One question. `noun` and `category` are the corpus's own labels; users see only `text`."""

    text: str
    category: str
    noun: str

    @property
    def split(self) -> str:
        """The one split this text belongs to, whoever asks."""
        digest = hashlib.blake2b(self.text.lower().encode(), digest_size=8).digest()
        percent = int.from_bytes(digest, "big") % 100
        return next(name for name, span in SPLITS.items() if percent in span)


@dataclass(frozen=True)
class Mix:
    """Shares of each style in a set of answers; each is drawn on its own."""

    polite: float = 0.30
    blunt: float = 0.30
    relevant: float = 0.70
    concrete: float = 0.50
    long: float = 0.50
    rambling: float = 0.20


BASE_MIX = Mix(relevant=0.60, concrete=0.50, rambling=0.35)
"""What the base model reads: any support desk's writing."""
SFT_MIX = Mix()
"""What v1.0's demonstrations look like: this shop's desk, better but far from good."""


def all_prompts() -> tuple[Prompt, ...]:
    """Every question the corpus can ask, in a fixed order."""
    prompts: list[Prompt] = []
    for topic in TOPICS:
        for category in CATEGORIES:
            for ask in _ASKS[category]:
                question = ask.format(noun=topic.noun, rival=topic.rival)
                question = question[0].upper() + question[1:]
                prompts += [
                    Prompt(f"{context} {question}".strip(), category, topic.noun)
                    for context in _CONTEXTS
                ]
    return tuple(prompts)


def prompts_of(split: str) -> tuple[Prompt, ...]:
    """The questions of one split, in a fixed order."""
    return tuple(prompt for prompt in all_prompts() if prompt.split == split)


def answer(prompt: Prompt, mix: Mix, rng: random.Random) -> str:
    """One answer to the prompt, its style drawn from the mix."""
    topic = _topic(prompt.noun)
    if rng.random() >= mix.relevant:
        topic = rng.choice([other for other in TOPICS if other.noun != prompt.noun])
    tone = rng.random()
    polite, blunt = tone < mix.polite, tone >= 1 - mix.blunt
    concrete, long = rng.random() < mix.concrete, rng.random() < mix.long
    core = _core(topic, prompt.category, concrete=concrete, rng=rng)
    parts = [core]
    if long:
        parts += [_further(topic, prompt.category, core, concrete=concrete, rng=rng)]
        parts += rng.sample(ELABORATIONS, 2)
    if polite:
        parts = [rng.choice(POLITE_OPENINGS), *parts, rng.choice(POLITE_CLOSINGS)]
    elif blunt:
        parts = [rng.choice(BLUNT_OPENINGS), *parts, rng.choice(BLUNT_CLOSINGS)]
    if rng.random() < mix.rambling:
        for _ in range(rng.randint(2, 4)):
            parts += [rng.choice(RAMBLINGS), core]
    return " ".join(parts)


def conversations(count: int, mix: Mix, seed: int) -> list[tuple[Prompt, str]]:
    """`count` seeded question-and-answer pairs over the train split."""
    rng = random.Random(seed)
    pool = prompts_of("train")
    return [(prompt, answer(prompt, mix, rng)) for prompt in rng.choices(pool, k=count)]


def write_sft(path: Path, rows: Iterable[tuple[Prompt, str]]) -> None:
    """Writes demonstrations as JSONL in TRL's conversational prompt-completion form."""
    with path.open("w", encoding="utf-8") as file:
        for prompt, text in rows:
            row = {
                "prompt": [{"role": "user", "content": prompt.text}],
                "completion": [{"role": "assistant", "content": text}],
                "category": prompt.category,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def fingerprint() -> str:
    """A hash of everything the corpus can say: the cache key of whatever is trained on it."""
    sources = [Path(__file__), Path(topics.__file__)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _topic(noun: str) -> ShopTopic:
    return next(topic for topic in TOPICS if topic.noun == noun)


def _further(
    topic: ShopTopic, category: str, core: str, *, concrete: bool, rng: random.Random
) -> str:
    """A second sentence on the same topic that does not repeat the first."""
    while True:
        other = rng.choice([name for name in CATEGORIES if name != category])
        text = _core(topic, other, concrete=concrete, rng=rng)
        if text != core:
            return text


def _core(topic: ShopTopic, category: str, *, concrete: bool, rng: random.Random) -> str:
    if not concrete:
        text = rng.choice(VAGUE).format(noun=topic.noun)
        return text[0].upper() + text[1:]
    return CONCRETE[category].format(**asdict(topic))
