"""A Hub that does not answer: what passes is tried again, what stays changes nothing."""

from __future__ import annotations

import pytest
from hub_server import HubServer
from huggingface_hub.errors import HfHubHTTPError
from test_hub import REPO, assert_same, trained_bert

import hf_nm


def test_a_failure_that_passes(hub: HubServer) -> None:
    for line in ("PUT /upload/", "POST .*/preupload/", "POST .*/batch"):
        hub.fail(line)
    model = trained_bert()
    hf_nm.push_to_hub(model, REPO)
    assert all(fault.times == 0 for fault in hub.faults)
    assert_same(model)


@pytest.mark.parametrize("status", [403, 500])
def test_a_card_that_cannot_be_read(status: int, hub: HubServer) -> None:
    """Red if a card is written anew because the Hub did not answer."""
    hf_nm.push_to_hub(trained_bert(), REPO)
    hub.edit(REPO, "README.md", lambda text: text + "\nMine.\n")
    hub.fail("GET .*/README.md", status, times=100)
    with pytest.raises(HfHubHTTPError, match=str(status)):
        hf_nm.push_to_hub(trained_bert(), REPO)
    hub.faults.clear()
    assert hub.card(REPO).endswith("\nMine.\n")
