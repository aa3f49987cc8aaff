"""Recipes: each system as one short function that returns its whole configuration.

A variant is ``dataclasses.replace(unicl(), width=256)``; your own is a function in your own file, used with
``--recipe my_file.py:my_recipe``.
"""

from unicl.recipes.locked import bert_clip, chinese_clip, lit
from unicl.recipes.pairs import align, convirt
from unicl.recipes.parts import filip, gloria, wukong
from unicl.recipes.recipe import DEFAULT_IMAGE, Recipe, Size
from unicl.recipes.whole import clip, cross_entropy, florence, itl, siglip, supcon, unicl

__all__ = [
    "DEFAULT_IMAGE",
    "Recipe",
    "Size",
    "align",
    "bert_clip",
    "chinese_clip",
    "clip",
    "convirt",
    "cross_entropy",
    "filip",
    "florence",
    "gloria",
    "itl",
    "lit",
    "siglip",
    "supcon",
    "unicl",
    "wukong",
]
