"""What a plan is: tasks by key, the cells that read them, and what was left out."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace

from benchmark.config import Config
from benchmark.errors import PlanError
from benchmark.plan.task import Made, Once, Task
from benchmark.types import Concept

Start = tuple[dict[str, str], dict[tuple[str, str], str], int, int]  # images, scores, expected images, passes


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Images of a cell that were asked for later: the split as which they are read, their key and their scores'."""

    split: str
    images: str
    scores: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell: who, against whom, after how much, and the keys of its tasks."""

    concept: Concept
    defense: str
    attack: str
    budget: int
    seed: int
    kind: str
    defend: str | None
    images: dict[str, str]
    scores: dict[tuple[str, str], str]
    expected: int
    rounds: tuple[Round, ...] = ()

    @property
    def name(self) -> str:
        """How people name it, and what must be unique."""
        return f"{self.concept.called}/{self.defense}/{self.attack}@{self.budget}#{self.seed}"


@dataclass(frozen=True)
class Skip:
    """A cell that makes no sense, with the reason; without a budget, all cells of the attack."""

    concept: str
    scenario: str
    defense: str
    attack: str
    reason: str
    budget: int = 0


@dataclass
class Plan:
    """Tasks by key, in an order in which parents come first, and the cells that read them."""

    config: Config
    base: str
    subject: Concept | None = None
    development: Mapping[str, Concept] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    requested: int = 0
    starts: dict[tuple[str, str], Start] = field(default_factory=dict, repr=False)
    guards: dict[str, float] = field(default_factory=dict, repr=False)  # defense -> passes, as a multiple of unguarded
    groups: dict[tuple[str, ...], Concept] = field(default_factory=dict, repr=False)  # erased at once, by their names
    made: Once = field(default_factory=Once, repr=False)

    def once(self, things: tuple[object, ...], names: tuple[Hashable, ...], make: Callable[[], Made]) -> Made:
        """What `make` gives for these things and names, made once for all cells."""
        return self.made.of(things, names, make)

    def place(self, metric: str, split: str) -> tuple[str, str]:
        """What a score is called within its cell."""
        return self.made.of((), ("place", metric, split), lambda: (metric, split))

    def add(self, task: Task) -> str:
        """Put a task in, or share the one that is there; return its key.

        Raises:
            PlanError: a parent is not in the plan.
        """
        for role, parent in task.parents.items():
            if parent not in self.tasks:
                raise PlanError(f"expected the parent {role} of {task.label} in the plan, got {parent}: add it first.")
        if task.kind in ("defend", "attack", "generate") and task.precision != self.config.raw.precision:
            task = replace(task, precision=self.config.raw.precision)
        self.requested += task.passes
        key = task.key
        if key in self.tasks:
            return self.tasks[key].key  # one text for all who name it
        self.tasks[key] = task
        return key

    @property
    def passes(self) -> int:
        """Estimated samples through the U-Net, each task counted once."""
        return sum(task.passes for task in self.tasks.values())
