"""A text as its bag of words: word embeddings alone, whose mean does not know in which order they came."""

from typing import Any, Final

from torch import Tensor, nn


class WordEmbeddings(nn.Module):
    """The embeddings of tokens without places: what a bag of words reads (CLIP, section 2.3 and figure 2).

    It stands where a transformer without layers has its own embeddings, and is called as they are.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings: Final = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.word_embeddings.weight, std=config.initializer_range)
        self.dropout: Final = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
    ) -> Tensor:
        """``(U, L, F)`` from tokens ``(U, L)``; what transformers says of places is not read."""
        del position_ids, token_type_ids, inputs_embeds, past_key_values_length
        states: Tensor = self.dropout(self.word_embeddings(input_ids))
        return states
