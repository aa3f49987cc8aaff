"""transformers' models from configurations."""

import pytest
import torch
from transformers import BertConfig, CLIPTextConfig, PretrainedConfig, SiglipTextConfig, T5Config

from unicl.errors import UserError
from unicl.towers.transformer import make_backbone, save_memory

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_clips_initial_weights_have_the_published_scales():
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
    state = make_backbone(CLIPTextConfig(vocab_size=3000, **sizes)).state_dict()
    wanted = {
        "token_embedding": 0.02,
        "position_embedding": 0.01,
        "q_proj": 256**-0.5,
        "v_proj": 256**-0.5,
        "out_proj": 256**-0.5 * 12**-0.5,
        "fc1": 512**-0.5,
        "fc2": 256**-0.5 * 12**-0.5,
    }
    for part, scale in wanted.items():
        weights = [value for name, value in state.items() if f"{part}.weight" in name]
        assert weights
        assert all(weight.std().item() == pytest.approx(scale, rel=0.03) for weight in weights), part


def test_models_come_without_poolers_heads_and_decoders():
    bert = make_backbone(BertConfig(intermediate_size=32, **SMALL))
    assert not any("pooler" in name for name, _ in bert.named_parameters())
    siglip = make_backbone(SiglipTextConfig(intermediate_size=32, max_position_embeddings=8, **SMALL))
    assert not any(name.startswith(("head.", "text_model.head.")) for name, _ in siglip.named_parameters())
    t5 = make_backbone(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    assert not any("decoder" in name for name, _ in t5.named_parameters())


def test_a_configuration_without_a_text_model_is_named():
    class StrangeConfig(PretrainedConfig):
        model_type = "strange"

    with pytest.raises(UserError, match="no text model for a configuration of type 'strange'"):
        make_backbone(StrangeConfig())


@pytest.mark.parametrize(
    "config",
    [
        CLIPTextConfig(intermediate_size=32, max_position_embeddings=8, **SMALL),
        BertConfig(intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SMALL),
    ],
    ids=["clip", "bert"],
)
def test_computing_again_changes_no_gradient_of_any_layer(config):
    torch.manual_seed(0)
    plain, saving = make_backbone(config).double(), make_backbone(config).double()
    saving.load_state_dict(plain.state_dict())
    save_memory(saving)
    tokens = torch.tensor([[1, 5, 7, 2]])
    for model in (plain, saving):
        output = model.train()(input_ids=tokens, output_hidden_states=True)
        (output.last_hidden_state + output.hidden_states[-2]).square().sum().backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
