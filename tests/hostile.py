"""A scripted model whose replies are hostile HTML."""

from scalecap.engines.base import Choose, Request

HOSTILE = "A <b>bold</b> dog</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>."


def says(request: Request) -> str | float:
    """A reply function: a hostile dog that is there, and an invented cat."""
    text = request.prompt.text
    if isinstance(request, Choose):
        return 0.1 if "cat" in text else 0.9
    if request.prompt.image is None:
        return f"{HOSTILE} It is brown." if "Join" in text else "Describe more details about the dog."
    if "position" in text:
        return "The dog is at the left."
    if "more details" in text:
        return "It is brown."
    return f"{HOSTILE} There is a cat."
