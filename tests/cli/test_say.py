"""What all verbs say in the same words."""

import pytest

from unicl.cli.say import needs, write
from unicl.errors import UserError


def test_a_page_that_cannot_be_written_names_its_place_and_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/page.html"):
        write(tmp_path / "file" / "page.html", "<p>")
    write(tmp_path / "new" / "page.html", "<p>")
    assert (tmp_path / "new" / "page.html").read_text() == "<p>"


def test_no_data_is_answered_with_an_example():
    with pytest.raises(UserError, match="for example: unicl check photos/"):
        needs((), "unicl check photos/")
    needs(("photos/",), "unicl check photos/")
