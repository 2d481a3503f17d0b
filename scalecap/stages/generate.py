"""Ask a model for text."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
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
from scalecap.stages.shortening import by_probability, from_the_end, generate_fitting, hold, limit
from scalecap.stages.split_sentences import split_sentences
from scalecap.text.parsing import Unparsed, body, json_value, lines
from scalecap.text.segmentation import sentences
from scalecap.text.templates import Expression, Template


@stage
class Generate:
    """Fills a prompt from columns and writes the model's reply, with the picture when `image` is given.

    `variables` names columns that fill the prompt; the items of a list (texts, or records with a `text`)
    stand on lines of their own. Without a picture, a prompt whose variables are all empty is not asked.

    `each` names list columns of equal length and asks once an item: the column is then a list with a reply
    an item, in their order. `samples: n` draws n replies to one prompt, each with its own seed: the column is
    a list of them.

    `views` is a column of regions and goes with `each`, or alone, once a region: each request is shown its
    own in place of the picture. An item without one is not asked about.

    With `where`, an expression over the variables of `each`, only items for which it holds are asked about;
    the others have an empty reply (null as JSON). A row without any such item is marked "skipped".

    `parse: lines` makes a list of the reply's lines, each once and without Markdown, `parse: sentences` of
    their sentences. With `each` or `samples` those of all replies are one list, and the side column `about`
    has the place of each one's item or sample, from 0. `parse: json` reads the reply as JSON, which follows
    the JSON schema `schema` if one is given; engines that can constrain decoding are held to it. A reply that
    can't be read is drawn once more (not a greedy one, which would be the same), then it is null and marked
    "unparsed".

    `max_sentences` and `max_characters` hold a text to a length: what is over is cut off at the end of a
    sentence (of a first one that is too long, at a clause or a word), marked "shortened". `max_words`, with
    `parse: sentences` too, leaves out whole sentences alone: a first one that is too long stays, marked
    "too_long". The prompt may tell `{{ max_words }}` and `{{ max_sentences }}`. A prompt too long
    for the model loses items of its lists until it takes about three quarters of the context, marked
    "shortened": those with the lowest `p_yes` first, then from the end of the longest list.

    A refusal ("I'm sorry, but I can't …") is marked "refused", a reply without text "empty". `retry_prompt`,
    with the same variables, is then asked once, marked "reprompted".

    The default `model` is `vlm` with a picture and `llm` without.
    """

    offered: ClassVar[tuple[str, ...]] = ("max_words", "max_sentences")
    """Settings that a prompt may tell."""

    def __init__(
        self,
        *,
        prompt: Template,
        retry_prompt: Template | None = None,
        parse: Literal["text", "lines", "sentences", "json"] = "text",
        schema: Mapping[str, Any] | None = None,
        samples: int | None = None,
        where: Expression | None = None,
        max_sentences: int | None = None,
        max_characters: int | None = None,
        max_words: int | None = None,
        model: Role = "vlm",
        sampling: Sampling | None = None,
    ) -> None:
        bounds = {"max_sentences": max_sentences, "max_words": max_words, "max_characters": max_characters}
        for name, most in bounds.items():
            if most is not None and most < 1:
                raise ValueError(f"{name}: {most} must be 1 or more")
            if most is not None and parse == "sentences" and name == "max_characters":
                raise ValueError(f"{name} needs `parse: text`")
            if most is not None and parse not in ("text", "sentences"):
                raise ValueError(f"{name} needs `parse: text` or `parse: sentences`")
        if schema is not None:
            if parse != "json":
                raise ValueError("schema needs `parse: json`")
            check_schema(schema)
        if samples is not None and samples < 1:
            raise ValueError(f"samples: {samples} must be 1 or more")
        self.prompt, self.retry_prompt = prompt, retry_prompt
        self.parse, self.samples, self.where = parse, samples, where
        self.schema = schema
        self._schema_text = json.dumps(schema, sort_keys=True) if schema is not None else None
        self.max_sentences, self.max_words, self.max_characters = max_sentences, max_words, max_characters
        self.model, self.sampling = model, sampling

    @staticmethod
    def shape(stage: Stage, given: Mapping[str, Any]) -> Stage:
        """The columns of a step with these settings."""
        if not any(given.get(name) for name in ("image", "views", "variables", "each")):
            raise ValueError("shows the model nothing: write `image: image`, `variables: …` or `each: …`")
        if given.get("image") and given.get("views"):
            raise ValueError("`image` and `views` do not go together: a request is shown one picture")
        sees = given.get("image") or given.get("views")
        model = replace(stage.settings["model"], default="vlm" if sees else "llm")
        if (given.get("each") or given.get("views")) and given.get("samples"):
            raise ValueError("`each` and `samples` do not go together: draw samples in a step before")
        if twice := _names(given.get("variables")) & _names(given.get("each")):
            raise ValueError(f"{sorted(twice)[0]!r} is named by both `variables` and `each`")
        if given.get("where") and not given.get("each"):
            raise ValueError("where: chooses items, and there is no `each`: a step has `when: <expression>`")
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
            return f"samples: {self.samples} greedy replies are equal: write `sampling: {{temperature: 0.7}}`"
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
                client.mark("skipped")
            chosen = [place for place in chosen if told(every[place][0], {**shared, **every[place][1]})]
            asked = set(chosen[: client.allowed([1] * len(chosen))])
            replies = await together(
                self._reply(client, view, {**shared, **item}) if place in asked else self._nothing()
                for place, (view, item) in enumerate(every)
            )
        elif self.samples is not None:
            draws = client.allowed([1] * self.samples) if told(image, shared) else 0
            replies = await together(self._reply(client, image, shared, draw) for draw in range(draws))
        else:
            asks = told(image, shared) and client.allowed([1])
            return await (self._reply(client, image, shared) if asks else self._nothing())
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
            drops(lists),
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
            found = lines(reply.text)
            if self.parse == "sentences":
                found = [sentence for line in found for sentence in split_sentences(line)]
                found = hold(found, self.max_sentences, self.max_words, client.mark)
            return found
        text = body(reply.text)
        if self.max_words is not None:
            spans = sentences(text)
            kept = hold(
                [text[slice(*span)] for span in spans], self.max_sentences, self.max_words, client.mark
            )
            text = "".join(kept).strip()
        if self.max_sentences is None and self.max_characters is None:
            return text
        limited = limit(text, self.max_sentences, self.max_characters)
        if limited != text.strip():
            client.mark("shortened")
        return limited

    async def _nothing(self) -> Any:
        """The reply of an item that is not asked about."""
        return {"text": "", "json": None}.get(self.parse, [])

    def _fault(self, reply: str) -> str | None:
        """The flag of a reply that can't be parsed."""
        if self.parse == "json":
            try:
                json_value(reply, self.schema)
            except Unparsed:
                return "unparsed"
        return None


def told(image: Image | None, values: Mapping[str, Any]) -> bool:
    """Whether there is anything to ask about."""
    return image is not None or any(as_text(value).strip() for value in values.values())


def _names(given: Any) -> set[str]:
    """The prompt's variables that a mapping, a list of columns or one column gives."""
    names = [given] if isinstance(given, str) else given if isinstance(given, Mapping | list) else []
    return {name for name in names if isinstance(name, str)}


def check_schema(schema: Mapping[str, Any]) -> None:
    """ValueError for what is no JSON schema."""
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"schema: {error.json_path}: {error.message}") from error


def items(each: Mapping[str, Sequence[Any]] | None, views: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The values of each item, by variable; null has none. ValueError for lists of several lengths."""
    lists = {name: values or [] for name, values in (each or {}).items()}
    lengths = {name: len(values) for name, values in lists.items()}
    if views is not None:
        lengths["views"] = len(views)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"each: lists of one length are wanted, these have {lengths}")
    return [{name: values[place] for name, values in lists.items()} for place in range(max(lengths.values()))]


def without(variables: Mapping[str, Any], dropped: Collection[int]) -> dict[str, str]:
    """The variables as texts; `dropped` are places among the items of all lists, end to end."""
    texts, first = {}, 0
    for name, value in variables.items():
        if isinstance(value, list):
            kept = [item for place, item in enumerate(value, first) if place not in dropped]
            first += len(value)
            value = kept
        texts[name] = as_text(value)
    return texts


def as_text(value: Any) -> str:
    """A list's items on lines of their own, the text of a record, nothing for None, else as it prints."""
    if isinstance(value, list):
        return "\n".join(map(as_text, value))
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return str(value["text"])
    return "" if value is None else str(value)


def drops(lists: Sequence[Sequence[Any]]) -> list[int]:
    """Places among the items of all lists, end to end, in the order in which they are given up."""
    items = [item for each in lists for item in each]
    p_yes = [item.get("p_yes") if isinstance(item, Mapping) else None for item in items]
    known = [place for place, p in enumerate(p_yes) if p is not None]
    first = [known[place] for place in by_probability([p_yes[place] for place in known]) or []]
    return [*first, *(place for place in from_the_end(lists) if place not in set(known))]
