"""Prompts from templates: tasks, formats and topics, drawn from (seed, index).

There is no corpus behind them. Held-out prompts take topics, facts and names that no training
prompt holds, so that what is measured on them was not learnt by heart; nor does any training prompt
hold a subject of benchmarks/speculation_tasks.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOPICS = Path(__file__).parent / "topics.txt"  # of training prompts, one a line


@dataclass(frozen=True, slots=True)
class Material:
    """What templates are filled with."""

    topics: Sequence[str]
    people: Sequence[str]
    cities: Sequence[str]
    jobs: Sequence[str]
    functions: Sequence[str]
    passages: Sequence[str]


TRAINING = Material(
    topics=tuple(TOPICS.read_text().splitlines()),
    people=(
        "Anna Keller",
        "Tom Baker",
        "Maria Santos",
        "Li Wei",
        "Omar Haddad",
        "Julia Novak",
        "Peter Olsen",
        "Grace Kim",
        "David Cohen",
        "Fatima Noor",
        "Jack Murphy",
        "Elena Rossi",
    ),
    cities=(
        "Lisbon",
        "Nairobi",
        "Toronto",
        "Osaka",
        "Prague",
        "Lima",
        "Dublin",
        "Cairo",
        "Oslo",
        "Melbourne",
    ),
    jobs=(
        "nurse",
        "carpenter",
        "data analyst",
        "teacher",
        "pilot",
        "chef",
        "architect",
        "farmer",
        "journalist",
        "plumber",
    ),
    functions=(
        "reverses a string",
        "checks whether a number is prime",
        "sorts a list of tuples",
        "counts the words of a text",
        "computes the factorial of n",
        "merges two dictionaries",
        "reads a CSV file",
        "finds the largest element of a list",
        "removes duplicates",
        "converts Celsius to Fahrenheit",
        "flattens a nested list",
        "computes Fibonacci numbers",
        "checks whether a word is a palindrome",
        "writes a list to a file",
        "groups words by their first letter",
        "computes the average of a list",
    ),
    passages=(
        "The town council met on Monday to discuss the new bridge. Several residents said that "
        "traffic has doubled in five years, while others were worried about the cost.",
        "Rainforests cover a small part of the planet, but hold more than half of its species. "
        "Every year large areas are cleared for farming, and many plants vanish unseen.",
        "The company sold 1,200 bicycles in March, up from 900 in February. The manager believes "
        "that warm weather and a discount of ten percent explain most of the growth.",
        "Our team finished the update late on Friday. It fixes two crashes, makes the start page "
        "faster, and adds a dark theme that many users had asked for.",
        "When the old clock in the station stopped, nobody noticed for three days. Then a boy "
        "missed his train, and the whole town began to talk about it.",
        "The experiment compared two groups of plants. Those that were watered every day grew "
        "taller, but those that were watered twice a week had stronger roots.",
    ),
)

HELD_OUT = Material(
    topics=(
        "wind turbines",
        "sailing",
        "the Silk Road",
        "glaciers",
        "meditation",
        "owls",
        "compilers",
        "honey",
        "the Olympic Games",
        "night trains",
    ),
    people=("Nora Lindqvist", "Samuel Okafor", "Priya Raman"),
    cities=("Vienna", "Bogota", "Helsinki"),
    jobs=("librarian", "welder", "translator"),
    functions=("checks whether a year is a leap year", "rotates a list by k places"),
    passages=(
        "The museum opens again in June after two years of repairs. Visitors will find a new "
        "entrance, a garden on the roof, and a room where children can try old instruments.",
        "Engineers measured the noise of three pumps at night. The smallest one was the loudest, "
        "because its bearings had not been oiled since the spring.",
    ),
)

TEMPLATES: Mapping[str, Sequence[str]] = {
    "question": (
        "What is interesting about {topic}?",
        "Explain {topic} to a ten-year-old child.",
        "Why do people care about {topic}?",
        "What are common mistakes when it comes to {topic}?",
        "How would you start to learn about {topic}?",
    ),
    "talk": (
        "Tell me about {topic}.",
        "How does one get better at dealing with {topic}?",
        "Describe an afternoon that has to do with {topic}.",
        "What should everybody know about {topic}?",
        "Give advice to somebody for whom {topic} is new.",
        "What do experts disagree on when they speak of {topic}?",
        "Write an essay about {topic}.",
    ),
    "list": (
        "List five facts about {topic}.",
        "Give me a numbered list of seven tips about {topic}.",
        "Name three advantages and three disadvantages of {topic}.",
        "Write a checklist for a workshop on {topic}.",
    ),
    "code": (
        "Write a Python function that {function}.",
        "Write a Python function that {function}, with a docstring and an example.",
        "Write a JavaScript function that {function}.",
        "Explain step by step how code that {function} works, then show it.",
    ),
    "json": (
        'Extract name, job and city as JSON from: "{person} is a {job} in {city}."',
        "Make up a person who works as a {job} in {city}. Answer with a JSON object with the keys "
        "name, age, job, city and hobbies.",
        "Describe {topic} as a JSON object with the keys title, summary and keywords.",
    ),
    "rewrite": (
        "Rewrite this more formally: {passage}",
        "Rewrite this in simpler words: {passage}",
        "Correct and improve this text: {passage}",
        "Turn this into bullet points: {passage}",
    ),
    "summary": (
        "Summarize in one sentence: {passage}",
        "Summarize this text, then ask two questions about it: {passage}",
    ),
    "story": (
        "Write a short story about {person}, a {job} from {city}.",
        "Write the beginning of a story that has to do with {topic}.",
        "Write a short poem about {topic}.",
    ),
    "letter": (
        "Write an email from {person} to a {job} in {city} about {topic}.",
        "Write a polite letter that asks for information about {topic}.",
        "Write a product description that has to do with {topic}.",
    ),
    "table": (
        "Make a Markdown table with three columns about {topic}.",
        "Plan a three-day trip to {city} for someone who likes {topic}.",
    ),
}


def prompt_at(material: Material, seed: int, index: int) -> str:
    """Return one prompt. Law: the same arguments give the same prompt."""
    rng = np.random.default_rng([seed, index])
    tasks = list(TEMPLATES)
    template = str(rng.choice(list(TEMPLATES[tasks[index % len(tasks)]])))
    return template.format(
        topic=rng.choice(list(material.topics)),
        person=rng.choice(list(material.people)),
        city=rng.choice(list(material.cities)),
        job=rng.choice(list(material.jobs)),
        function=rng.choice(list(material.functions)),
        passage=rng.choice(list(material.passages)),
    )
