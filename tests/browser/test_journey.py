"""From twelve pictures without captions to a picture in their style, in the page alone: every click is counted.

Nothing is set behind the page's back: buttons are clicked, fields are typed into, files chosen in the file dialog. A
preset sets the training up for the model; the test alone has it take fewer steps, and counts that, too. `python dev.py
bench journey` walks the same way with all of the preset's steps.
"""

import pytest

from tests.support.browser import NODES_2, ComfyPage
from tests.support.person import FORMS, MOST_DEEDS, Person, styled_pictures, walk

STEPS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return styled_pictures(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture
def person(browser, page_server, passing_files):
    """Somebody who has just opened the page."""
    tab = ComfyPage(browser, page_server, NODES_2)
    yield Person(tab)
    tab.close()


@pytest.mark.parametrize("form", FORMS)
def test_photos_become_a_picture_in_their_style_with_few_clicks(person, photos, form):
    drawn = walk(person, photos, form, STEPS)
    assert drawn.is_styled and not drawn.base_is_styled
    assert len(person.deeds) <= MOST_DEEDS, person.deeds
    assert not person.tab.complaints()
