"""The web page: pictures of your subject without a line of code.

    python -m realcustom_jax.demo

    words.py      a prompt as words to click on, and the target that the clicked ones name
    uploads.py    which reference pictures are taken; the bundled ones
    settings.py   what a person has set, and what is wrong with it, field by field
    studio.py     one model, one call at a time, a step after the other; stops when nobody waits any more
    pictures.py   the mask of a step on a picture
    command.py    the settings as a command line
    page.py       the page (the only module that knows Gradio)
    __main__.py   the command that serves it

Nothing here keeps what belongs to a person: that is the page's state in their browser's session.
"""
