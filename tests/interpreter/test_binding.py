from types import SimpleNamespace

import pytest
from steps import DATA, STEPS, changed, one

from scalecap.engines.base import Generate, Prompt, Sampling
from scalecap.interpreter.cache import key
from scalecap.interpreter.pipeline import Pipeline, PipelineError
from scalecap.stages import registry


def test_the_plan_is_sorted_by_names_whatever_the_order_of_keys():
    lines = [str(step) for step in Pipeline.build(STEPS, DATA).steps]
    assert lines == [
        "init_caption: generate([]) -> [init_caption]",
        "sentences: split_sentences([init_caption]) -> [sentences]",
        "golden: verify([sentences]) -> [golden, golden_scores, golden_refuted]",
        "raw_questions: generate([golden]) -> [raw_questions]",
        "q_list: parse_questions([raw_questions]) -> [q_list]",
        "raw_answers: generate([q_list]) -> [raw_answers]",
        "details: verify([raw_answers]) -> [details, details_scores, details_refuted]",
        "final: fuse([golden, details, init_caption]) -> [final]",
    ]
    backwards = Pipeline.build(dict(reversed(STEPS.items())), DATA)
    assert [str(step) for step in backwards.steps] == lines


def test_the_plan_shows_role_and_rendered_prompt():
    plan = Pipeline.build(STEPS, DATA).plan()
    shown = "    asks vlm, with the image\n    threshold: 0.5, mode: choose, batch: 1\n    prompt:\n"
    assert f"{shown}      | True: <text>\n" in plan
    assert "-> [sentences]\n    no model\n    rule: default\n" in plan
    assert "-> [raw_questions]\n    asks llm\n    parse: text\n    prompt:\n      | Ask: <golden>\n" in plan


@pytest.mark.parametrize(
    ("steps", "roles"),
    [
        (STEPS, {"vlm", "llm"}),
        ({name: STEPS[name] for name in ("init_caption", "sentences", "golden")}, {"vlm"}),
        (changed(raw_questions=STEPS["raw_questions"] | {"model": "vlm"}, final=None), {"vlm"}),
        (one({"stage": "split_sentences", "text": "id"}), set()),
    ],
)
def test_roles_are_only_those_in_use(steps, roles):
    assert Pipeline.build(steps, DATA).roles == roles


def test_the_plan_shows_how_often_a_model_is_called():
    plan = Pipeline.build(STEPS, None).plan()
    assert "    asks vlm, once an item of q_list, with the image\n" in plan
    steps = one({"stage": "generate", "prompt": "p", "image": "image", "samples": 8})
    assert "    asks vlm, 8 samples, with the image\n" in Pipeline.build(steps, None).plan()


def test_the_plan_shows_conditions():
    steps = changed(final=STEPS["final"] | {"when": "golden | length > 1", "otherwise": "init_caption"})
    plan = Pipeline.build(steps, DATA).plan()
    assert "    when golden | length > 1, otherwise init_caption\n    asks llm\n" in plan
    off = changed(final=STEPS["final"] | {"when": False, "otherwise": "init_caption"})
    assert "    when false, otherwise init_caption\n" in Pipeline.build(off, DATA).plan()


def test_a_step_comes_after_what_its_condition_reads():
    steps = {
        "a": {"stage": "split_sentences", "text": "id", "when": "b | length", "otherwise": "c"},
        "b": {"stage": "split_sentences", "text": "id"},
        "c": {"stage": "split_sentences", "text": "id"},
    }
    assert [step.name for step in Pipeline.build(steps, DATA).steps][-1] == "a"


def test_an_ensemble_is_part_of_the_plan():
    plan = Pipeline.build(changed(golden=STEPS["golden"] | {"ensemble": ["See {{ text }}?"]}), DATA).plan()
    assert "    ensemble.0:\n      | See <text>?\n" in plan


def test_a_class_that_only_sets_flags_needs_no_model():
    steps = one({"stage": "assemble", "sentences": "tags"})
    assert Pipeline.build(steps, DATA).roles == set()
    assert "no model" in Pipeline.build(steps, DATA).plan()


def test_a_step_keeps_its_settings_defaults_too():
    steps = changed(golden=STEPS["golden"] | {"threshold": 1, "sampling": {"temperature": 0}})
    golden = Pipeline.build(steps, DATA, sampling=Sampling(max_tokens=9)).steps[2]
    assert golden.settings["mode"] == "choose"
    assert golden.settings["threshold"] == 1.0
    assert golden.settings["sampling"] == Sampling(temperature=0, max_tokens=9)


def test_a_steps_sampling_makes_the_cache_key_that_the_runs_makes(compose):
    given = {"temperature": 0, "top_p": 1, "repetition_penalty": 1, "max_tokens": 9}
    step = one({"stage": "generate", "image": "image", "prompt": "p", "sampling": given})
    (own,) = Pipeline.build(step, DATA).steps
    runs = compose(*(f"sampling.{name}={value}" for name, value in given.items())).sampling
    keys = [key("m", Generate(Prompt("p"), sampling)) for sampling in (own.settings["sampling"], runs)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "steps",
    [
        one({"stage": "split_sentences", "text": "id"}),
        one({"stage": "split_sentences", "text": "meta"}),
        one({"stage": "generate", "prompt": "p", "image": "image"}),
        one({"stage": "generate", "prompt": "{{ a }}{{ b }}", "variables": {"a": "tags", "b": "count"}}),
        changed(final=STEPS["final"] | {"initial": None, "fallback": "empty"}),
        one({"stage": "generate", "image": "image", "prompt": "p", "sampling": None}),
    ],
)
def test_valid(steps):
    Pipeline.build(steps, DATA)


def test_columns_of_unknown_data_are_not_checked():
    steps = one({"stage": "split_sentences", "text": "who_knows"})
    Pipeline.build(steps, None)
    with pytest.raises(PipelineError, match="who_knows"):
        Pipeline.build(steps, {})


BAD = [
    (one({"stage": "verfy"}), "x: unknown stage 'verfy'; did you mean 'verify'"),
    (one({"stage": "other/verify"}), "x: unknown stage 'other/verify' (is its module in pipeline.imports"),
    (
        one({"text": "id"}),
        "x: the step has no `stage:` key; add `stage: <name>`; available: assemble, best_of, ",
    ),
    (one("generate"), "x: the step has no `stage:` key; add `stage: <name>`"),
    (one({"stage": "split_sentences", "text": "id", "rul": "seed"}), "no setting 'rul'; did you mean 'rule'"),
    (one({"stage": "split_sentences", "text": "id", True: "seed"}), "no setting True; "),  # YAML's `yes:`
    (
        one({"stage": "split_sentences", "text": "id", "rule": "sed"}),
        "x: rule: invalid value 'sed', expected one of 'default', 'seed'",
    ),
    (
        one({"stage": "parse_questions", "text": "id", "max_questions": "9"}),
        "max_questions: expected an integer, got '9'",
    ),
    (
        one({"stage": "parse_questions", "text": "id", "max_questions": True}),
        "max_questions: expected an integer, got True",
    ),
    (
        one({"stage": "generate", "image": "image"}),
        "generate requires 'prompt': add `prompt: ${prompts.<role>}`",
    ),
    (one({"stage": "generate", "image": "image", "prompt": 3}), "prompt: expected a string, got 3"),
    (changed(golden=STEPS["golden"] | {"ensemble": "Sure?"}), "ensemble: expected a list, got 'Sure?'"),
    (changed(golden=STEPS["golden"] | {"ensemble": [3]}), "golden: ensemble: expected a string, got 3"),
    (
        changed(golden=STEPS["golden"] | {"ensemble": ["{{ text }}?", "{{ txt }}?"]}),
        "golden: ensemble.1: unknown variable {{ txt }}; did you mean 'text'",
    ),
    (
        one({"stage": "contrast", "texts": "tags"}),
        "x: expected either `prompt` or `questions`",
    ),
    (one({"stage": "generate", "image": "image", "prompt": "{{ a"}), "prompt: line 1: unexpected end"),
    (
        one({"stage": "generate", "image": "image", "prompt": "{{ text }}"}),
        "prompt: unknown variable {{ text }}; available: none",
    ),
    (
        one({"stage": "generate", "image": "image", "prompt": "p", "model": "vml"}),
        "model: invalid value 'vml', expected one of 'vlm', 'llm', 'judge'",
    ),
    (
        one({"stage": "generate", "prompt": "p", "image": "photo"}),
        "image: expected `image`, the row's image, got",
    ),
    (
        one({"stage": "generate", "image": "image", "prompt": "p", "sampling": {"temprature": 0}}),
        "sampling: unknown key 'temprature'; did you mean 'temperature'",
    ),
    (
        one({"stage": "generate", "image": "image", "prompt": "p", "sampling": {"temperature": "hot"}}),
        "sampling: temperature: expected a number, got 'hot'",
    ),
    (
        one(
            {
                "stage": "generate",
                "image": "image",
                "prompt": "p",
                "sampling": {"temperature": -3, "top_p": 7},
            }
        ),
        "sampling: temperature=-3.0: must be 0 or more; top_p=7.0: must be above 0 and at most 1",
    ),
    (
        one(
            {
                "stage": "generate",
                "image": "image",
                "prompt": "p",
                "sampling": {"max_tokens": 0, "repetition_penalty": 0},
            }
        ),
        "sampling: max_tokens=0: must be 1 or more; repetition_penalty=0.0: must be above 0",
    ),
    (
        one(
            {"stage": "generate", "image": "image", "prompt": "p", "sampling": {"temperature": float("nan")}}
        ),
        "sampling: temperature=nan: must be 0 or more",
    ),
    (
        one({"stage": "generate", "image": "image", "prompt": "p", "sampling": 0}),
        "sampling: expected a mapping such as `{temperature: 0}`, got 0",
    ),
    (
        changed(golden=STEPS["golden"] | {"prompt": "{{ txt }}"}),
        "golden: prompt: unknown variable {{ txt }}; did you mean 'text'",
    ),
    (
        changed(golden=STEPS["golden"] | {"prompt": "{text}"}),
        "golden: prompt: uses no variable; expected {{ text }}",
    ),
    (
        changed(golden=STEPS["golden"] | {"threshold": 7}),
        "threshold: expected a probability between 0 and",
    ),
    (
        changed(raw_questions=STEPS["raw_questions"] | {"prompt": "{{ sentence }}"}),
        "raw_questions: prompt: unknown variable {{ sentence }}; available: s",
    ),
    (
        changed(raw_questions=STEPS["raw_questions"] | {"retry_prompt": "Please: {{ text }}"}),
        "raw_questions: retry_prompt: unknown variable {{ text }}; available: s",
    ),
    (
        changed(raw_questions=STEPS["raw_questions"] | {"variables": {"s": "golden", "t": "golden"}}),
        "raw_questions: prompt: the variable 't' is never used",
    ),
    (
        changed(raw_questions=STEPS["raw_questions"] | {"variables": {"s": "goldn"}}),
        "variables.s: no step and no data column is named 'goldn'; did you mean 'golden'?",
    ),
    (changed(raw_questions=STEPS["raw_questions"] | {"variables": 3}), "expected a mapping of names"),
    (changed(raw_questions=STEPS["raw_questions"] | {"variables": [["s"]]}), "expected a mapping of names"),
    (
        changed(raw_answers=STEPS["raw_answers"] | {"variables": {"question": "id"}}),
        "raw_answers: 'question' is in both `variables` and `each`",
    ),
    (
        changed(golden=STEPS["golden"] | {"views": "sentences"}),
        "golden: views: 'sentences' is a list of texts, not regions of the image",
    ),
    (
        {"x": {"stage": "tiles"}, "y": {"stage": "generate", "prompt": "{{ v }}", "variables": {"v": "x"}}},
        "y: variables.v: 'x' is regions of the image, not a value for a prompt",
    ),
    (
        {"x": {"stage": "tiles"}, "y": {"stage": "generate", "prompt": "p", "image": "image", "views": "x"}},
        "y: `image` and `views` can't be combined",
    ),
    (
        one({"stage": "generate", "prompt": "p", "views": "vews"}),
        "x: views: no step and no data column is named 'vews'",
    ),
    (
        changed(final=STEPS["final"] | {"when": "goldn | length > 1"}),
        "final: when: unknown name 'goldn'; did you mean 'golden'",
    ),
    (changed(final=STEPS["final"] | {"when": "final"}), "final: when: unknown name 'final'; available: "),
    (changed(final=STEPS["final"] | {"when": "golden |"}), "final: when: 'golden |' is not an expression: "),
    (changed(final=STEPS["final"] | {"when": "golden }} {{ x"}), "is not an expression: "),
    (changed(final=STEPS["final"] | {"when": "golden | len"}), "is not an expression: No filter named 'len'"),
    (changed(final=STEPS["final"] | {"when": 3}), "final: when: expected an expression, got 3"),
    (changed(final=STEPS["final"] | {"otherwise": "id"}), "final: otherwise: requires `when:"),
    (
        changed(final=STEPS["final"] | {"when": "golden", "otherwise": "tags"}),
        "final: otherwise: 'tags' is a list of texts, but the step writes a text",
    ),
    (
        changed(final=STEPS["final"] | {"when": "golden", "otherwise": "init_captoin"}),
        "final: otherwise: no step and no data column is named 'init_captoin'; did you mean 'init_caption'",
    ),
    (
        changed(raw_answers=STEPS["raw_answers"] | {"where": "qestion | length > 3"}),
        "raw_answers: where: unknown name 'qestion'; did you mean 'question'",
    ),
    (
        changed(init_caption=STEPS["init_caption"] | {"where": "id"}),
        "init_caption: where: selects items and requires `each`",
    ),
    (
        changed(init_caption=STEPS["init_caption"] | {"samples": 2, "sampling": {"temperature": 0}}),
        "init_caption: samples: 2 greedy replies would be equal: add `sampling:",
    ),
    (
        changed(raw_answers=STEPS["raw_answers"] | {"samples": 2}),
        "raw_answers: `each` and `samples` can't be combined",
    ),
    (
        changed(raw_answers=STEPS["raw_answers"] | {"each": {"question": "init_caption"}}),
        "raw_answers: each.question: 'init_caption' is a text, not a list",
    ),
    (
        changed(init_caption=STEPS["init_caption"] | {"parse": "lines"}),
        "sentences: text: 'init_caption' is a list of texts, not a text",
    ),
    (
        changed(init_caption=STEPS["init_caption"] | {"parse": "json", "schema": "box.json"}),
        "init_caption: schema: expected a mapping, got 'box.json'",
    ),
    (changed(raw_questions=STEPS["raw_questions"] | {"variables": ["golden"]}), "unknown variable {{ s }}"),
    (
        changed(raw_questions=STEPS["raw_questions"] | {"variables": ["goldn"]}),
        "named 'goldn'; did you mean 'golden'",
    ),
    (
        changed(raw_questions=STEPS["raw_questions"] | {"variables": {"s": 3}}),
        "variables.s: expected the name of a column",
    ),
    (
        changed(golden=STEPS["golden"] | {"texts": "sentenced"}),
        "golden: texts: no step and no data column is named 'sentenced'; did you mean 'sentences'?",
    ),
    (changed(details=None), "final: object_info: no step and no data column is named 'details'"),
    (
        one({"stage": "verify", "prompt": "{{ text }}"}),
        "x: missing 'texts': add `texts: <column>`; available: meta, tags",
    ),
    (
        one({"stage": "generate", "prompt": "p"}),
        "x: the prompt has no input: add `image: image`, `variables: …` or `each: …`",
    ),
    (
        changed(q_list={"stage": "parse_questions", "text": "sentences"}),
        "q_list: text: 'sentences' is a list of texts, not a text",
    ),
    (one({"stage": "split_sentences", "text": "count"}), "text: 'count' is a number, not a text"),
    (
        one({"stage": "split_sentences", "text": "id"}, "tags"),
        "tags: column 'tags' already comes from the data; rename the step, or remove",
    ),
    (
        changed(golden_scores={"stage": "split_sentences", "text": "id"}),
        "column 'golden_scores' already comes from golden; rename the step",
    ),
    (one({"stage": "split_sentences", "text": "id"}, "error"), "'error' is a reserved column name"),
    (
        {
            "a": {"stage": "generate", "prompt": "{{ v }}", "variables": {"v": "b"}},
            "b": {"stage": "generate", "prompt": "{{ v }}", "variables": {"v": "a"}},
        },
        "the steps form a cycle: ",
    ),
    (one({"stage": "split_sentences", "text": "x"}), "the steps form a cycle: x -> x"),
    (
        changed(final={name: value for name, value in STEPS["final"].items() if name != "initial"}),
        "final: fallback: initial requires the column: add `initial: init_caption`",
    ),
]


@pytest.mark.parametrize(("steps", "message"), BAD, ids=range(len(BAD)))
def test_bad(steps, message):
    with pytest.raises(PipelineError) as caught:
        Pipeline.build(steps, DATA)
    assert any(message in problem for problem in caught.value.problems), caught.value.problems


def test_a_mistyped_step_gets_a_suggestion():
    with pytest.raises(PipelineError, match=r"no `stage:` key.*; did you mean 'golden'"):
        Pipeline.build(changed(goldn={"threshold": 0.7}), DATA)


def test_all_problems_come_at_once():
    steps = changed(
        golden=STEPS["golden"] | {"treshold": 0.5, "texts": "sentence"},
        q_list={"stage": "parse_question", "text": "raw_questions"},
        error={"stage": "split_sentences", "text": "id"},
    )
    with pytest.raises(PipelineError) as caught:
        Pipeline.build(steps, DATA, imports=["no_such_module_anywhere"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "imports",
        "q_list",
        "error",
        "golden",
        "golden",
    ]
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_a_package_that_cannot_be_loaded_is_reported(monkeypatch):
    def load():
        raise ImportError("it needs a library")

    entries = [SimpleNamespace(module="outside.x", load=load)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    with pytest.raises(PipelineError, match=r"x: 'outside/shout' can't be loaded: ImportError: it needs"):
        Pipeline.build(one({"stage": "outside/shout", "text": "id"}), DATA)


def test_a_stage_from_an_imported_module(tmp_path, monkeypatch):
    (tmp_path / "my_own_stages.py").write_text(
        "from scalecap.stages import stage\n\n@stage\ndef shout(text: str) -> str:\n    return text.upper()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    steps = one({"stage": "my_own_stages/shout", "text": "id"})
    assert str(Pipeline.build(steps, DATA, imports=["my_own_stages"]).steps[0]) == (
        "x: my_own_stages/shout([id]) -> [x]"
    )
