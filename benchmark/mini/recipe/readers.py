"""Text encoders of the flow model, made of that of the other one. Needs none of the art."""

from copy import deepcopy

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection


def reader(encoder: CLIPTextModel, layers: int) -> CLIPTextModelWithProjection:
    """The first layers of a text encoder, with a projection that changes nothing."""
    config = deepcopy(encoder.config)
    config.num_hidden_layers, config.projection_dim = layers, config.hidden_size
    config.t5_rows = 0  # read by our family: the stock pipeline is told `max_sequence_length=0`
    found = CLIPTextModelWithProjection(config)
    wanted = found.text_model.state_dict().keys()
    found.text_model.load_state_dict({key: value for key, value in encoder.state_dict().items() if key in wanted})
    with torch.no_grad():
        found.text_projection.weight.copy_(torch.eye(config.hidden_size))
    return found.eval().requires_grad_(False)
