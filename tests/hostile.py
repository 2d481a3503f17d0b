"""A model whose texts mean harm."""

from scalecap.engines.base import Choose, Request

HOSTILE = "A <b>bold</b> dog</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>."


def says(request: Request) -> str | float:
    """The model sees a hostile dog and invents a cat."""
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
