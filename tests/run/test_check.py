"""What is found, and shown, before a model loads."""

import pytest
from runs import Compose

from scalecap.runner import RunError, plan, run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.steps.golden_sentences.treshold=0.7", "threshold"),
        ("pipeline.steps.golden_sentences.stage=verfy", "verify"),
        ("pipeline.steps.golden_sentences.texts=sentence", "sentences"),
        ("prompts.verify='{{ txt }}'", "text"),
        ("~pipeline.steps.final_details", "final_details"),
        ("data=jsonl", "data.path"),
    ],
)
def test_a_fault_is_found_before_a_model_loads(compose: Compose, override: str, message: str):
    settings = compose(override)
    for work in (run, plan):
        with pytest.raises(RunError, match=message):
            work(settings)


def test_the_plan_shows_steps_models_and_prompts(compose: Compose):
    shown = plan(compose("model=scalecap-7b-72b"))
    written = "[golden_sentences, golden_sentences_scores, golden_sentences_refuted]"
    assert f"golden_sentences: verify([sentences]) -> {written}" in shown
    assert "llm: Qwen/Qwen2-72B-Instruct" in shown
    assert "Given the image, is the description '<text>' directly supported" in shown
