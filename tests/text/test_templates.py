import pytest

from scalecap.text.templates import Expression, PromptError, Template


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


@pytest.mark.parametrize("value", ["{{ 7 * 7 }}", "{% raw %}", "<b>&", "{text}"])
def test_a_value_is_neither_a_template_nor_escaped(value):
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
        ("{{ txt }}", ["text"], ["unknown variable {{ txt }}; did you mean 'text'?"]),
        ("{{ q }}", [], ["unknown variable {{ q }}; available: none"]),
        ("{text}", ["text"], ["uses no variable; expected {{ text }}"]),
        (
            "{{ b }}{{ a }}",
            ["text"],
            ["unknown variable {{ a }}; available: text", "unknown variable {{ b }}; available: text"],
        ),
        ("{{ text.x }}", ["text"], ["'str object' has no attribute 'x'"]),
    ],
)
def test_problems(source, valid, problems):
    assert Template(source).problems(valid) == problems


@pytest.mark.parametrize(
    ("source", "values", "holds"),
    [
        ("a > 0.3 and a < 0.7", {"a": 0.5}, True),
        ("0.3 < a < 0.7", {"a": 0.7}, False),
        ("texts | length", {"texts": []}, False),
        ("texts | select('in', 'a dog')", {"texts": ["cat", "dog"]}, True),
        ("scores | selectattr('p', 'lt', 0.5)", {"scores": [{"p": 0.9}]}, False),
        ("'{{ 7 * 7 }}' == a", {"a": "{{ 7 * 7 }}"}, True),
    ],
)
def test_a_condition_holds_or_not(source, values, holds):
    assert Expression(source).holds(**values) is holds


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a.__class__.__mro__", "unsafe"),
        ("a.b", "no attribute 'b'"),
        ("a < 1", "not supported between"),
        ("a.append(1)", "not safely callable|unsafe"),
    ],
)
def test_a_condition_that_cannot_be_computed(source, message):
    with pytest.raises(PromptError, match=message):
        Expression(source).holds(a=["text"])
