"""From files to batches: sources, sampling, the pipeline, augmentation, tokenisation."""

from mixcon.data import augment, tokenizer
from mixcon.data.pipeline import Batches, eval_batches, train_iterator
from mixcon.data.records import Source
from mixcon.data.tokenizer import Tokenizer

__all__ = ["Batches", "Source", "Tokenizer", "augment", "eval_batches", "tokenizer", "train_iterator"]
