"""Stages, one file each, and what an author of a stage needs.

A stage without a model is a plain function (or an async one); columns stand before the `*`, settings
after it:

    @stage
    def parse_questions(text: str, *, max_questions: int = 20) -> list[str]: ...

A stage that uses a model is a class: settings first, one async call after. Rows share the object,
so a call never writes to `self`. With side columns it returns a tuple:

    @stage(side=["scores"])
    class Verify:
        variables = {"prompt": ("text",)}
        def __init__(self, *, prompt: Template, threshold: float = 0.5, model: Role = "vlm"): ...
        async def __call__(self, client: ModelClient, *, texts: list[str], image: Image) -> tuple[...]: ...

The name is the function's, or the class's in snake_case; outside this package it begins with the
outer package's name (`package/name`). `variables` names what fills each prompt. A class may define
`check(self, columns) -> str | None`, given the names of the column parameters that are bound: the
text of a problem, reported before any model loads. A class that uses `client` only to set flags declares
`role = None`.

A stage declares what it imports beyond this package's own dependencies, so that a missing library is
reported before a model loads: `@stage(requires={"nltk": "scalecap[metrics]"})` maps a module to what to pip
install. A class that needs files may also define `missing(self) -> str | None`, which names the missing
one; `close(self)`, if defined, is called when the run ends.

A metric declares the measures for which higher is not better, so that comparisons mark the right run:
`@stage(better={"wrong": "lower", "words": "neither"})`. A stage whose columns depend on its settings defines
`shape(stage, given) -> Stage` (see `Stage.for_step`). A stage that crops the image returns `Regions` (made by
`scalecap.stages.regions.cut`); a stage that shows such regions to a model takes `Views`.
"""

from scalecap.engines.base import Chosen as Chosen
from scalecap.engines.base import Generated as Generated
from scalecap.engines.base import Image as Image
from scalecap.engines.base import PromptTooLong as PromptTooLong
from scalecap.engines.base import Sampling as Sampling
from scalecap.engines.base import Scored as Scored
from scalecap.stages.registry import ROLES as ROLES
from scalecap.stages.registry import Columns as Columns
from scalecap.stages.registry import Items as Items
from scalecap.stages.registry import Kind as Kind
from scalecap.stages.registry import Measures as Measures
from scalecap.stages.registry import ModelClient as ModelClient
from scalecap.stages.registry import Overall as Overall
from scalecap.stages.registry import Parameter as Parameter
from scalecap.stages.registry import Regions as Regions
from scalecap.stages.registry import Role as Role
from scalecap.stages.registry import Stage as Stage
from scalecap.stages.registry import Views as Views
from scalecap.stages.registry import find as find
from scalecap.stages.registry import names as names
from scalecap.stages.registry import stage as stage
from scalecap.stages.registry import together as together
