"""A seed for each task and one for each image.

A task's seed leaves out its parents, so that an attack draws the same batches and noise against every defense and
against the undefended base: cells are paired. An image's seed depends on its prompt and its number alone,
and on a stream that keeps it apart from images of another use.
"""

from benchmark.seeds import derive

SEARCHED = "searched"  # the stream of what a search of an evaluation prompt looks at: never a seed of a row's own
CONFIRM = "confirm"  # stream of fresh images of worst arms, apart from those that named them


def image_seed(prompt_id: str, image: int, stream: str = "") -> int:
    """The seed of image number `image` of a prompt; `stream` keeps training data apart from evaluation."""
    return derive("image", stream, prompt_id, image)


def task_seed(kind: str, plugin: str, concept: str, seed: int) -> int:
    """The seed of a task's generator."""
    return derive("task", kind, plugin, concept, seed)
