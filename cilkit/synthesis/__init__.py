"""Concepts become images: a plan, a generator, shards, and a look at what was painted."""

from cilkit.synthesis.generators import Generator, load_generator
from cilkit.synthesis.paint import paint_plan
from cilkit.synthesis.plan import make_plan, plan_hash

__all__ = ["Generator", "load_generator", "make_plan", "paint_plan", "plan_hash"]
