"""Advice for runs whose checks are unanswered or whose prefix cache is not used."""

from scalecap.interpreter.dispatch import StepUsage

NO_REUSE = (
    "Image tokens were hardly ever reused: of requests about an image sent before, less than 5 % of the"
    " prompt tokens came from the prefix cache, so nearly every request encoded its image again. Check that"
    " prefix caching is on (engine.args.enable_prefix_caching=true, or vllm serve --enable-prefix-caching)"
    " and that the cache is large enough (or lower rows_in_flight). Where prefix caching is not available, as"
    " with hybrid models such as Qwen3.5 and many hosted servers, check several texts in one request:"
    " pipeline.steps.STEP.batch=4 'pipeline.steps.STEP.batch_prompt=${prompts.verify_batch}'. Qwen3-VL"
    " (model=qwen3-vl-4b) on your own engine does not need this."
)


def unanswered_checks(step: str, role: str | None, usage: StepUsage, min_mass: float) -> str:
    """Why a run stops whose checks are mostly unanswered, and what to change.

    Args:
        role: the role of the step's model.
        min_mass: the setting of this name, a probability.
    """
    return (
        f"{step}: {usage.flags['unanswered']} of its first {usage.choices} checks are unanswered: yes and no"
        f" together have a probability below min_mass={min_mass:g}, so the model would reply something else."
        f" If it reasons first, disable that: model.{role}.chat_template_kwargs.enable_thinking=false."
        f" Otherwise try another prompt (pipeline.steps.{step}.prompt=…), or accept every answer with"
        " min_mass=0. Use another output=, since finished rows are not redone."
    )
