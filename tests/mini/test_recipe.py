"""How the embedded models are made: what is taken over from one to the other is taken over whole."""

import pytest
import torch
from transformers import CLIPTextModel

from benchmark.mini import WEIGHTS
from benchmark.mini.recipe.readers import reader


@pytest.mark.parametrize("layers", [4, 2])
def test_a_reader_answers_as_the_text_encoder_that_it_is_made_of(layers: int) -> None:
    """Its names have a prefix: a `load_state_dict` that lets names pass left it untrained."""
    encoder = CLIPTextModel.from_pretrained(WEIGHTS / "pipeline" / "text_encoder", dtype=torch.float32)
    ids = torch.arange(3, 35)[None]

    with torch.no_grad():
        wanted = encoder(ids, output_hidden_states=True).hidden_states
        found = reader(encoder, layers)(ids, output_hidden_states=True)

    assert all(torch.equal(w, f) for w, f in zip(wanted, found.hidden_states, strict=False))
    assert len(found.hidden_states) == layers + 1
    if layers == encoder.config.num_hidden_layers:
        assert torch.equal(found.text_embeds, encoder(ids).pooler_output)
