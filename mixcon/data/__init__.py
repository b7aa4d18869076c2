"""From files to batches: sources, sampling, the pipeline, augmentation, tokenisation."""

from mixcon.data import augment, tokenizer
from mixcon.data.digit_views import digit_views, long_tail
from mixcon.data.emoji import Emoji
from mixcon.data.pipeline import Batches, eval_batches, train_iterator
from mixcon.data.records import Source
from mixcon.data.sources import array_record
from mixcon.data.tokenizer import Tokenizer

__all__ = [
    "Batches",
    "Emoji",
    "Source",
    "Tokenizer",
    "array_record",
    "augment",
    "digit_views",
    "eval_batches",
    "long_tail",
    "tokenizer",
    "train_iterator",
]
