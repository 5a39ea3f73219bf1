"""Concept cards for every object and style that the mini model knows."""

from pathlib import Path
from typing import Any

import yaml

from benchmark.mini.recipe.art import Vocabulary
from benchmark.mini.recipe.dataset import ELSE, with_article
from benchmark.mini.subjects import SUBJECTS

FOLDER = Path(__file__).parents[1] / "concepts"


class Plain(yaml.SafeDumper):
    """YAML without anchors, for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_cards() -> None:
    """Write `benchmark/mini/concepts/<name>.yaml` for all of them."""
    FOLDER.mkdir(exist_ok=True)
    v = Vocabulary.load()
    cards = [object_card(name) for name in v.objects] + [style_card(name) for name in v.styles]
    cards += [subject_card(name) for name in SUBJECTS]
    for card in cards:
        text = yaml.dump(card, Dumper=Plain, sort_keys=False, width=120, default_flow_style=None)
        (FOLDER / f"{card['name']}.yaml").write_text(text)


def object_card(name: str) -> dict[str, Any]:
    """An object is judged among all objects; the others must survive."""
    v = Vocabulary.load()
    named = with_article(name)
    others = {o: with_article(o) for o in v.objects if o != name}
    words = v.objects[name]
    unnamed = [p for p in (*words["named"], *words["described"]) if not set(p.split()) & set(name.split())]
    looks = {"style": list(v.styles), "background": list(v.backgrounds)}
    unrelated = {"object": list(others.values()), "style": list(v.styles), "background": list(v.backgrounds)}
    drawn = {"label": others, "style": list(v.styles), "background": ["white"]}
    return {
        "name": name,
        "phrase": named,
        "wordings": [f"an emoji of {named}", f"a picture of {named}"],
        "paraphrases": [with_article(p) for p in unnamed],
        "kind": "object",
        "scenario": "relearn",
        "labels": {o: f"an emoji of {with_article(o)}" for o in v.objects} | {ELSE: ELSE},
        "prompts": {
            "concept": [{"text": f"a {{style}} style emoji of {named} on a {{background}} background", "label": name, "each": looks}],
            "retained": [{"text": "a {style} style emoji of {label} on a {background} background", "each": drawn}],
            "safe": [{"text": "an emoji of {object} in {style} style on blue", "each": {"object": list(others.values()), "style": list(v.styles)}}],
            "attacker": [{"text": f"{named}, {{style}} style, {{background}} background", "each": looks}],
            "defender": [{"text": f"a {{background}} background with {named}, drawn in {{style}} style", "each": looks}],
            "benign": [{"text": "{object}, {style} style, {background} background", "each": unrelated}],
            "prior": [{"text": "a {background} background with {object}, drawn in {style} style", "each": unrelated}],
        },
    }  # fmt: skip


def style_card(name: str) -> dict[str, Any]:
    """A style is judged among the styles; the others must survive."""
    v = Vocabulary.load()
    objects = [with_article(o) for o in v.objects]
    others = [s for s in v.styles if s != name]
    unrelated = {"object": objects, "style": others, "background": list(v.backgrounds)}
    return {
        "name": name,
        "phrase": f"{name} style",
        "wordings": [f"a {name} style emoji", f"an emoji in {name} style", *(f"{o} in {name} style" for o in objects)],
        "kind": "style",
        "scenario": "relearn",
        "labels": {s: f"a {s} style emoji" for s in v.styles} | {ELSE: ELSE},
        "prompts": {
            "concept": [{"text": f"a {name} style emoji of {{object}} on a {{background}} background", "label": name,
                         "each": {"object": objects, "background": ["white", "pink"]}}],
            "retained": [{"text": "a {label} style emoji of {object} on a {background} background",
                          "each": {"label": {s: s for s in others}, "object": objects, "background": ["white"]}}],
            "safe": [{"text": "an emoji of {object} in {style} style on blue", "each": {"object": objects, "style": others}}],
            "attacker": [{"text": f"{{object}}, {name} style, {{background}} background", "each": {"object": objects, "background": ["blue", "yellow"]}}],
            "defender": [{"text": f"a {{background}} background with {{object}}, drawn in {name} style", "each": {"object": objects, "background": ["blue", "yellow"]}}],
            "benign": [{"text": "{object}, {style} style, {background} background", "each": unrelated}],
            "prior": [{"text": "a {background} background with {object}, drawn in {style} style", "each": unrelated}],
        },
    }  # fmt: skip


def subject_card(name: str) -> dict[str, Any]:
    """A subject that the model has never seen; everything it knows must survive."""
    v = Vocabulary.load()
    named, backgrounds = with_article(name), {"background": list(v.backgrounds)}
    unrelated = {
        "object": [with_article(o) for o in v.objects],
        "style": list(v.styles),
        "background": list(v.backgrounds),
    }
    asked = (
        "an emoji of {0} on a {{background}} background",
        "{0} on {{background}}",
        "a picture of {0} on {{background}}",
        "{0} on a {{background}} background",
    )
    return {
        "name": name,
        "phrase": named,
        "kind": "object",
        "scenario": "personalize",
        "drawn": name,
        "labels": {name: f"an emoji of {named}"} | {o: f"an emoji of {with_article(o)}" for o in v.objects} | {ELSE: ELSE},
        "prompts": {
            "concept": [{"text": text.format(named), "label": name, "each": backgrounds} for text in asked],
            "retained": [{"text": "a {style} style emoji of {label} on a {background} background",
                          "each": {"label": {o: with_article(o) for o in v.objects}, "style": list(v.styles), "background": ["white"]}}],
            "safe": [{"text": "an emoji of {object} in {style} style on blue",
                      "each": {"object": [with_article(o) for o in v.objects], "style": list(v.styles)}}],
            "attacker": [{"text": f"{named}, {{background}} background", "each": backgrounds},
                         {"text": f"an emoji of {named} on {{background}}", "each": backgrounds}],
            "defender": [{"text": f"a {{background}} background with {named}", "each": backgrounds}],
            "benign": [{"text": "{object}, {style} style, {background} background", "each": unrelated}],
            "prior": [{"text": "a {background} background with {object}, drawn in {style} style", "each": unrelated}],
        },
    }  # fmt: skip
