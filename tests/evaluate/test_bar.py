import io

from rich.console import Console

from unicl.evaluate.bar import bar


def shown(*, visible):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    with bar("images", total=4, shown=visible, console=console) as advance:
        advance(3)
        advance(1)
    return file.getvalue()


def test_the_bar_shows_what_is_counted_and_how_far_it_is():
    assert "images" in shown(visible=True)
    assert "4/4" in shown(visible=True)


def test_a_hidden_bar_writes_nothing():
    assert "images" not in shown(visible=False)
