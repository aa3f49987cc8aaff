"""Recipes: each system as one short function that returns its whole configuration.

A variant is ``dataclasses.replace(unicl(), width=256)``; your own is a function in your own file, used with
``--recipe my_file.py:my_recipe``.
"""

from unicl.recipes.findings import medclip
from unicl.recipes.locked import bert_clip, chinese_clip, lit
from unicl.recipes.masked import icmlm, tag_prediction
from unicl.recipes.pairs import align, convirt
from unicl.recipes.parts import filip, gloria, wukong
from unicl.recipes.predict import virtex
from unicl.recipes.recipe import DEFAULT_IMAGE, Recipe, Size
from unicl.recipes.whole import clip, cross_entropy, florence, itl, siglip, supcon, unicl
from unicl.recipes.words import bag_contrast, bag_prediction, caption_lm

__all__ = [
    "DEFAULT_IMAGE",
    "Recipe",
    "Size",
    "align",
    "bag_contrast",
    "bag_prediction",
    "bert_clip",
    "caption_lm",
    "chinese_clip",
    "clip",
    "convirt",
    "cross_entropy",
    "filip",
    "florence",
    "gloria",
    "icmlm",
    "itl",
    "lit",
    "medclip",
    "siglip",
    "supcon",
    "tag_prediction",
    "unicl",
    "virtex",
    "wukong",
]
