"""Stages, one file each, and what an author of a stage needs.

A stage without a model is a plain function (or an async one); columns stand before the `*`, settings
after it:

    @stage
    def parse_questions(text: str, *, max_questions: int = 20) -> list[str]: ...

A stage that asks a model is a class: settings first, one async call after. Rows share the object,
so a call never writes to `self`. With side columns it returns a tuple:

    @stage(side=["scores"])
    class Verify:
        variables = {"prompt": ("text",)}
        def __init__(self, *, prompt: Template, threshold: float = 0.5, model: Role = "vlm"): ...
        async def __call__(self, client: ModelClient, *, texts: list[str], image: Image) -> tuple[...]: ...

The name is the function's, or the class's in snake_case; outside this package it begins with the
outer package's name (`package/name`). `variables` names what fills each prompt. A class may define
`check(self, columns) -> str | None`, given the names of the column parameters that are bound: the
text of a problem that is found before any model loads. One that only marks rows says `role = None`.
What a stage imports beyond this package's own dependencies it declares, so that a run without it
ends before a model loads: `@stage(requires={"nltk": "scalecap[metrics]"})`, module to what pip
installs. A class that needs files too may define `missing(self) -> str | None`, what is not there;
`close(self)`, if it is there, is called when the run ends.
A metric declares the measures of which the highest is not the best, for comparisons to mark the right run:
`@stage(better={"wrong": "lower", "words": "neither"})`.
A stage whose columns depend on its settings defines `shape(stage, given) -> Stage` (see `Stage.for_step`).
One that cuts the picture returns `Regions` (`scalecap.stages.regions.cut` makes one), one that is shown such
parts takes `Views`.
"""

from scalecap.engines.base import Chosen, Generated, Image, PromptTooLong, Sampling, Scored
from scalecap.stages.registry import (
    ROLES,
    Columns,
    Items,
    Kind,
    Measures,
    ModelClient,
    Overall,
    Parameter,
    Regions,
    Role,
    Stage,
    Views,
    find,
    names,
    stage,
    together,
)

__all__ = [
    "ROLES",
    "Chosen",
    "Columns",
    "Generated",
    "Image",
    "Items",
    "Kind",
    "Measures",
    "ModelClient",
    "Overall",
    "Parameter",
    "PromptTooLong",
    "Regions",
    "Role",
    "Sampling",
    "Scored",
    "Stage",
    "Views",
    "find",
    "names",
    "stage",
    "together",
]
