"""The words that tasks are made of. A tokenizer may keep each of them as one token."""

from __future__ import annotations

_FIRST_NAMES = """
    Ada Alan Alice Amos Anna Aron Beth Bill Boris Bruno Carl Cleo Cora Cyril Dana Dora Edgar Ella
    Emil Erik Esme Ezra Fay Felix Fiona Fritz Gabe Gina Greta Gus Hana Hugo Ida Igor Ines Ivan Jade
    Jonas Jude Julia Kai Kira Kurt Lara Leo Lidia Luca Mabel Marco Mira Nadia Nils Nora Olga Omar
    Otto Paula Petra Quinn Rosa Samir Tara Uma Vera
"""
FIRST_NAMES = tuple(_FIRST_NAMES.split())
_LAST_NAMES = """
    Adler Baker Costa Dale Evans Frost Grant Hale Iyer Jensen Keller Lopez Moreau Novak Olsen Price
"""
LAST_NAMES = tuple(_LAST_NAMES.split())
_CITIES = "Oslo Rome Lima Cairo Delhi Paris Quito Seoul Tunis Turin Vienna York"
CITIES = tuple(_CITIES.split())
_COLORS = "red blue green black white gray pink gold brown purple silver orange"
COLORS = tuple(_COLORS.split())
_ANIMALS = "fox cat dog hen bear wolf hare mole crow swan goat toad"
ANIMALS = tuple(_ANIMALS.split())
_JOBS = "baker pilot nurse judge clerk miner actor guide poet chef tailor farmer"
JOBS = tuple(_JOBS.split())
_SIZES = "small big old young calm quick loud shy brave sleepy hungry lazy"
SIZES = tuple(_SIZES.split())
_VERBS = "sees hears finds likes helps calls visits follows chases greets meets draws"
VERBS = tuple(_VERBS.split())
_DETERMINERS = "the a one every"
DETERMINERS = tuple(_DETERMINERS.split())
SYMBOLS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
CAPITALS = {
    "Austria": "Vienna",
    "Egypt": "Cairo",
    "France": "Paris",
    "India": "Delhi",
    "Italy": "Rome",
    "Korea": "Seoul",
    "Norway": "Oslo",
    "Peru": "Lima",
}
