"""The texts that come with an image in the data, for use in prompts."""

from typing import ClassVar

from scalecap.stages import Columns, ModelClient, stage
from scalecap.stages.generate import as_text
from scalecap.stages.split_sentences import split_sentences


@stage(side=["about"])
class Context:
    """The sentences of the row's columns, and the items of lists, such as tags.

    Empty values and missing columns are skipped. The side column `about` has the name of each text's column.
    """

    role: ClassVar[None] = None
    sparse: ClassVar[bool] = True
    """Columns that a row lacks are null."""

    async def __call__(self, client: ModelClient, *, columns: Columns) -> tuple[list[str], list[str]]:
        found = [
            (text, name)
            for name, value in columns.items()
            for each in (value if isinstance(value, list) else [value])
            for text in split_sentences(as_text(each))
        ]
        return [text for text, _ in found], [name for _, name in found]
