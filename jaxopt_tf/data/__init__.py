"""Corpora of text and tokens, and batches of them for a language model.

corpus = read_text([Path("books")])
batches = Batches(corpus, block_size=64, batch_size=8, seed=42)

corpus = read_conversations([Path("rows.jsonl")], tokenizer=..., cache_dir=...)
batches = PackedBatches(PackedRows(corpus, "training", block_size=1024), ...)
"""

from ._batches import Batches as Batches
from ._batches import evaluation_batches as evaluation_batches
from ._batches import training_windows as training_windows
from ._chat_template import ChatTokenizer as ChatTokenizer
from ._conversations import form_of_rows as form_of_rows
from ._conversations import read_conversations as read_conversations
from ._corpus import Corpus as Corpus
from ._corpus import min_token_dtype as min_token_dtype
from ._documents import read_documents as read_documents
from ._examples import ExampleBatches as ExampleBatches
from ._examples import StreamedBatches as StreamedBatches
from ._examples import as_mapping as as_mapping
from ._examples import batched as batched
from ._examples import seeded_generators as seeded_generators
from ._examples import stack_examples as stack_examples
from ._examples import to_numpy as to_numpy
from ._examples import torch_permutation as torch_permutation
from ._images import Images as Images
from ._labelled_rows import LabelledRows as LabelledRows
from ._labelled_rows import read_labelled as read_labelled
from ._length_groups import bucket_numbers as bucket_numbers
from ._length_groups import bucketed_indices as bucketed_indices
from ._length_groups import length_grouped_indices as length_grouped_indices
from ._packing import PackedBatches as PackedBatches
from ._packing import PackedRows as PackedRows
from ._packing import packed_evaluation_batches as packed_evaluation_batches
from ._padding import PadToBuckets as PadToBuckets
from ._padding import choose_length_pairs as choose_length_pairs
from ._padding import choose_lengths as choose_lengths
from ._padding import fill_rows as fill_rows
from ._pretokenized import is_pretokenized as is_pretokenized
from ._pretokenized import read_tokens as read_tokens
from ._row_files import read_rows as read_rows
from ._task_batches import MaskedTokens as MaskedTokens
from ._task_batches import Seq2SeqBatch as Seq2SeqBatch
from ._task_batches import shift_right as shift_right
from ._task_columns import TASKS as TASKS
from ._task_columns import TaskColumns as TaskColumns
from ._task_columns import find_columns as find_columns
from ._task_columns import label_ids as label_ids
from ._task_columns import label_names as label_names
from ._text import read_text as read_text
from ._text import standard_library as standard_library
from ._text_codec import TextCodec as TextCodec
from ._text_codec import byte_codec as byte_codec
from ._text_codec import chat_codec as chat_codec
from ._text_codec import document_codec as document_codec
from ._text_codec import tokenizer_codec as tokenizer_codec
from ._text_encoder import IGNORED as IGNORED
from ._text_encoder import Encoder as Encoder
from ._tokenize import tokenize_text as tokenize_text
