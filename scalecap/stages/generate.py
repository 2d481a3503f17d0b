"""Generate text from a prompt."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from scalecap.stages import (
    Columns,
    Image,
    Items,
    Kind,
    ModelClient,
    Role,
    Sampling,
    Stage,
    Views,
    stage,
    together,
)
from scalecap.stages.shortening import by_probability, from_the_end, generate_fitting, keep_fitting, truncate
from scalecap.stages.split_sentences import split_sentences
from scalecap.text.parsing import Unparsed, body, json_value, lines
from scalecap.text.refusals import refuses
from scalecap.text.segmentation import sentences
from scalecap.text.templates import Expression, Template


@stage
@dataclass(kw_only=True, eq=False)
class Generate:
    """Fills a prompt from columns and writes the model's reply, with the image when `image` is given.

    `variables` names columns that fill the prompt; the items of a list (texts, or records with a `text`)
    are joined by line breaks. Without an image, a prompt whose variables are all empty is not sent.

    `each` names list columns of equal length and sends one request per item: the column is then the list of
    replies, in order. `samples: n` draws n replies to one prompt, each with its own seed: the column is the
    list of them.

    `views` is a column of regions, used alone or with `each`: each request shows its region instead of the
    image. An item without a region gets no request.

    With `where`, an expression over the variables of `each`, only items for which it holds get a request;
    the others have an empty reply (null as JSON). A row without any such item is flagged "skipped".

    `parse: lines` makes a list of the reply's lines, each once and without Markdown, `parse: sentences` of
    their sentences. With `each` or `samples` those of all replies are one list, and the side column `about`
    has the place of each one's item or sample, from 0. `parse: json` reads the reply as JSON, which follows
    the JSON schema `schema` if one is given; engines that support constrained decoding enforce it. A reply
    that can't be parsed is drawn once more (unless greedy), then it is null and flagged "unparsed".

    `max_sentences` and `max_characters` truncate a text after a sentence (a first sentence that is too long,
    after a clause or a word), flagged "shortened". `max_words`, with
    `parse: sentences` too, drops whole sentences only: a first one that is too long stays, flagged
    "too_long". The prompt may use `{{ max_words }}` and `{{ max_sentences }}`. A prompt too long
    for the model loses items of its lists until it takes about three quarters of the context, flagged
    "shortened": those with the lowest `p_yes` first, then from the end of the longest list.

    A refusal ("I'm sorry, but I can't …") is flagged "refused", a reply without text "empty". `retry_prompt`,
    with the same variables, is then sent once, flagged "reprompted". Lines that are refusals are left out.

    The default `model` is `vlm` with an image and `llm` without.
    """

    offered: ClassVar[tuple[str, ...]] = ("max_words", "max_sentences")
    """Settings available to prompts as variables."""

    prompt: Template
    retry_prompt: Template | None = None
    parse: Literal["text", "lines", "sentences", "json"] = "text"
    schema: Mapping[str, Any] | None = None
    samples: int | None = None
    where: Expression | None = None
    max_sentences: int | None = None
    max_characters: int | None = None
    max_words: int | None = None
    model: Role = "vlm"
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        for name in ("max_sentences", "max_words", "max_characters", "samples"):
            most = getattr(self, name)
            if most is not None and most < 1:
                raise ValueError(f"{name}: expected at least 1, got {most}")
            if most is not None and self.parse == "sentences" and name == "max_characters":
                raise ValueError(f"{name} requires `parse: text`")
            if most is not None and self.parse not in ("text", "sentences") and name != "samples":
                raise ValueError(f"{name} requires `parse: text` or `parse: sentences`")
        if self.schema is not None:
            if self.parse != "json":
                raise ValueError("schema requires `parse: json`")
            from jsonschema import Draft202012Validator, SchemaError

            try:
                Draft202012Validator.check_schema(self.schema)
            except SchemaError as error:
                raise ValueError(f"schema: {error.json_path}: {error.message}") from error
        self._schema_text = None if self.schema is None else json.dumps(self.schema, sort_keys=True)

    @staticmethod
    def shape(stage: Stage, given: Mapping[str, Any]) -> Stage:
        """The stage with the columns and the default model that these settings imply."""
        if not any(given.get(name) for name in ("image", "views", "variables", "each")):
            raise ValueError("the prompt has no input: add `image: image`, `variables: …` or `each: …`")
        if given.get("image") and given.get("views"):
            raise ValueError("`image` and `views` can't be combined: a request has one image")
        shows_image = given.get("image") or given.get("views")
        model = replace(stage.settings["model"], default="vlm" if shows_image else "llm")
        if (given.get("each") or given.get("views")) and given.get("samples"):
            raise ValueError("`each` and `samples` can't be combined: draw the samples in an earlier step")
        if twice := _names(given.get("variables")) & _names(given.get("each")):
            raise ValueError(f"{sorted(twice)[0]!r} is in both `variables` and `each`")
        if given.get("where") and not given.get("each"):
            raise ValueError(
                "where: selects items and requires `each`; for a whole step use `when: <expression>`"
            )
        listed = any(given.get(name) for name in ("each", "views", "samples"))
        joins = given.get("parse") in ("lines", "sentences")
        kind: Kind = "texts" if listed or joins else "text"
        if given.get("parse") == "json":
            kind = "list" if listed else "any"
        about = ("about",) if listed and joins else ()
        return replace(
            stage,
            settings={**stage.settings, "model": model},
            side=about,
            kinds=(kind, "list") if about else (kind,),
        )

    def check(self, columns: Collection[str]) -> str | None:
        if (self.samples or 1) > 1 and self.sampling and self.sampling.temperature == 0:
            return (
                f"samples: {self.samples} greedy replies would be equal: add `sampling: {{temperature: 0.7}}`"
            )
        return None

    async def __call__(
        self,
        client: ModelClient,
        *,
        image: Image | None = None,
        variables: Columns | None = None,
        each: Items | None = None,
        views: Views | None = None,
    ) -> Any:
        shared = variables or {}
        if each is not None or views is not None:
            listed = items(each, views)
            every = list(zip(views or [image] * len(listed), listed, strict=True))
            chosen = [
                place
                for place, (view, item) in enumerate(every)
                if (views is None or view is not None)
                and (self.where is None or self.where.holds(**shared, **item))
            ]
            if every and not chosen:
                client.flag("skipped")
            chosen = [
                place for place in chosen if has_content(every[place][0], {**shared, **every[place][1]})
            ]
            to_send = set(chosen[: client.allowed([1] * len(chosen))])
            replies = await together(
                self._reply(client, view, {**shared, **item}) if place in to_send else self._nothing()
                for place, (view, item) in enumerate(every)
            )
        elif self.samples is not None:
            draws = client.allowed([1] * self.samples) if has_content(image, shared) else 0
            replies = await together(self._reply(client, image, shared, draw) for draw in range(draws))
        else:
            send = has_content(image, shared) and client.allowed([1])
            return await (self._reply(client, image, shared) if send else self._nothing())
        if self.parse not in ("lines", "sentences"):
            return replies
        about = [place for place, found in enumerate(replies) for _ in found]
        return [line for found in replies for line in found], about

    async def _reply(
        self, client: ModelClient, image: Image | None, values: Mapping[str, Any], sample: int = 0
    ) -> Any:
        """One reply, parsed."""
        lists = [value for value in values.values() if isinstance(value, list)]

        def filled(prompt: Template) -> Callable[[Collection[int]], str]:
            bounds = {"max_words": self.max_words, "max_sentences": self.max_sentences}
            return lambda dropped: prompt.render(**{**bounds, **without(values, dropped)})

        reply = await generate_fitting(
            client,
            filled(self.prompt),
            [len(as_text(item)) for value in lists for item in value],
            drop_order(lists),
            model=self.model,
            sampling=self.sampling,
            image=image,
            retry=filled(self.retry_prompt) if self.retry_prompt else None,
            sample=sample,
            schema=self._schema_text,
            fault=self._fault,
        )
        if self.parse == "json":
            return None if self._fault(reply.text) else json_value(reply.text, self.schema)
        if self.parse in ("lines", "sentences"):
            found = [line for line in lines(reply.text) if not refuses(line)]
            if self.parse == "sentences":
                found = [sentence for line in found for sentence in split_sentences(line)]
                found = keep_fitting(found, self.max_sentences, self.max_words, client.flag)
            return found
        text = body(reply.text)
        if self.max_words is not None:
            spans = sentences(text)
            kept = keep_fitting(
                [text[slice(*span)] for span in spans], self.max_sentences, self.max_words, client.flag
            )
            text = "".join(kept).strip()
        if self.max_sentences is None and self.max_characters is None:
            return text
        limited = truncate(text, self.max_sentences, self.max_characters)
        if limited != text.strip():
            client.flag("shortened")
        return limited

    async def _nothing(self) -> Any:
        """The value for an item without a request."""
        return {"text": "", "json": None}.get(self.parse, [])

    def _fault(self, reply: str) -> str | None:
        """The flag "unparsed" of a reply that can't be parsed."""
        if self.parse == "json":
            try:
                json_value(reply, self.schema)
            except Unparsed:
                return "unparsed"
        return None


def has_content(image: Image | None, values: Mapping[str, Any]) -> bool:
    """Whether there is an image or a variable that is not empty."""
    return image is not None or any(as_text(value).strip() for value in values.values())


def _names(given: Any) -> set[str]:
    """The prompt's variables that a mapping, a list of columns or one column gives."""
    names = [given] if isinstance(given, str) else given if isinstance(given, Mapping | list) else []
    return {name for name in names if isinstance(name, str)}


def items(each: Mapping[str, Sequence[Any]] | None, views: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The values of each item, by variable; null is an empty list. ValueError for lists of unequal length."""
    lists = {name: values or [] for name, values in (each or {}).items()}
    lengths = {name: len(values) for name, values in lists.items()}
    if views is not None:
        lengths["views"] = len(views)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"each: expected lists of equal length, got {lengths}")
    return [{name: values[place] for name, values in lists.items()} for place in range(max(lengths.values()))]


def without(variables: Mapping[str, Any], dropped: Collection[int]) -> dict[str, str]:
    """The variables as texts; `dropped` are positions among the items of all lists, concatenated."""
    texts, first = {}, 0
    for name, value in variables.items():
        if isinstance(value, list):
            kept = [item for place, item in enumerate(value, first) if place not in dropped]
            first += len(value)
            value = kept
        texts[name] = as_text(value)
    return texts


def as_text(value: Any) -> str:
    """A list as lines, a record as its `text`, None as an empty string, anything else as `str` gives it."""
    if isinstance(value, list):
        return "\n".join(map(as_text, value))
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return str(value["text"])
    return "" if value is None else str(value)


def drop_order(lists: Sequence[Sequence[Any]]) -> list[int]:
    """Positions among the items of all lists, concatenated, in the order in which they are dropped."""
    items = [item for each in lists for item in each]
    p_yes = [item.get("p_yes") if isinstance(item, Mapping) else None for item in items]
    known = [place for place, p in enumerate(p_yes) if p is not None]
    first = [known[place] for place in by_probability([p_yes[place] for place in known]) or []]
    return [*first, *(place for place in from_the_end(lists) if place not in set(known))]
