"""The searches that are built in. A module that defines one costs nothing to import."""

from __future__ import annotations

from plait.decoders.search import beam, best_of, independent
from plait.decoders.search.faithful import asap, cars, mcmc, smc
from plait.decoders.search.lookahead import a_star, ada_dec, deal

METHODS = (
    independent.METHOD,
    best_of.METHOD,
    beam.METHOD,
    ada_dec.METHOD,
    deal.METHOD,
    a_star.METHOD,
    smc.METHOD,
    cars.METHOD,
    asap.METHOD,
    mcmc.METHOD,
)
