"""What a run says when its model can't be read as it should, or costs more than it should."""

from scalecap.interpreter.dispatch import StepUsage

NO_REUSE = (
    "A picture's tokens were hardly ever reused: of requests about a picture shown before, less than 5 % of"
    " the prompt tokens came from the prefix cache, so each computed the picture anew. See that prefix"
    " caching is on (engine.args.enable_prefix_caching=true, or vllm serve --enable-prefix-caching) and its"
    " cache large enough (or rows_in_flight smaller). Where it can't be had, as of hybrid models such as"
    " Qwen3.5 and many hosted servers, checks of several texts in one request pay the picture once:"
    " pipeline.steps.STEP.batch=4 'pipeline.steps.STEP.batch_prompt=${prompts.verify_batch}'. Qwen3-VL"
    " (model=qwen3-vl-4b) on an engine of your own needs none of it."
)


def unanswered_checks(step: str, role: str | None, count: StepUsage, least: float) -> str:
    """Why a run stops whose checks are mostly unanswered, and what to change.

    Args:
        role: of the model that the step asks.
        least: `min_mass`.
    """
    return (
        f"{step}: {count.marks['unanswered']} of its first {count.choices} checks are unanswered: the options"
        f" have a probability below min_mass={least:g} together, so the model would say something else. If it"
        f" reasons first, turn that off: model.{role}.chat_template_kwargs.enable_thinking=false; else try"
        f" another prompt (pipeline.steps.{step}.prompt=…), or min_mass=0 to take every answer. With another"
        " output=, since the rows done stay as they are."
    )
