import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.prompts import PromptError, Template


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("plain", set()),
        ("{{ a }} {{ b.c }}", {"a", "b"}),
        ("{% for x in a %}{{ x }}{% endfor %}", {"a"}),
        ("{% if a %}{{ b }}{% endif %}", {"a", "b"}),
        ("{a} {# {{ b }} #}", set()),
    ],
)
def test_variables_are_known_before_use(source, variables):
    assert Template(source).variables == variables


@given(st.text())
def test_a_value_stands_in_the_prompt_as_it_is(value):
    assert Template("[{{ text }}]").render(text=value) == f"[{value}]"


@pytest.mark.parametrize("value", ["{{ 7 * 7 }}", "{% raw %}", "<b>&", "{text}"])
def test_a_value_is_no_template_and_not_escaped(value):
    assert Template("{{ text }}").render(text=value) == value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ a", "line 1: unexpected end"),
        ("x\n{% if %}", "line 2"),
        ("{{ a | nofilter }}", "No filter named"),
    ],
)
def test_bad_syntax(source, message):
    with pytest.raises(PromptError, match=message):
        Template(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ a }}{{ b }}", "'b' is undefined"),
        ("{{ a.nothing }}", "has no attribute 'nothing'"),
        ("{{ a.__class__.__mro__ }}", "unsafe"),
        ("{{ a + 1 }}", "can only concatenate"),
    ],
)
def test_rendering_is_strict_and_sandboxed(source, message):
    with pytest.raises(PromptError, match=message):
        Template(source).render(a="value")


@pytest.mark.parametrize(
    ("source", "valid", "problems"),
    [
        ("{{ text }}", ["text"], []),
        ("plain", [], []),
        ("{{ context }}", ["context", "details"], []),
        ("{{ txt }}", ["text"], ["unknown variable {{ txt }}; nearest: text"]),
        ("{{ q }}", [], ["unknown variable {{ q }}; there are none"]),
        ("{text}", ["text"], ["uses no variable: write {{ text }}"]),
        (
            "{{ b }}{{ a }}",
            ["text"],
            ["unknown variable {{ a }}; there are: text", "unknown variable {{ b }}; there are: text"],
        ),
        ("{{ text.x }}", ["text"], ["'str object' has no attribute 'x'"]),
    ],
)
def test_problems(source, valid, problems):
    assert Template(source).problems(valid) == problems
