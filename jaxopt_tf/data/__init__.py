"""Corpora of text and tokens, and batches of them for a language model.

corpus = read_text([Path("books")])
batches = Batches(corpus, block_size=64, batch_size=8, seed=42)
"""

from ._batches import Batches as Batches
from ._batches import evaluation_batches as evaluation_batches
from ._batches import training_windows as training_windows
from ._corpus import Corpus as Corpus
from ._corpus import min_token_dtype as min_token_dtype
from ._ready_tokens import is_ready_tokens as is_ready_tokens
from ._ready_tokens import read_tokens as read_tokens
from ._text import read_text as read_text
from ._text import standard_library as standard_library
from ._tokenize import tokenize_text as tokenize_text
