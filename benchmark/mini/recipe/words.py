"""The mini model's tokenizer: CLIP's byte-pair encoding, learnt from emoji labels, tags and our captions."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from benchmark.mini.recipe.art import Vocabulary, read_json
from benchmark.mini.recipe.dataset import caption, random_label

ENTRIES = 4096
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""  # CLIP's split


def corpus(folder: Path, seed: int) -> list[str]:
    """Emoji labels and tags in English, our phrases, and a few thousand captions."""
    rng = np.random.default_rng(seed)
    emoji = read_json(folder, "labels", "en/compact.json")
    lines = [" ".join([e["label"], *e.get("tags", [])]) for e in emoji]
    ours = [p for o in Vocabulary.load().objects.values() for p in (*o["named"], *o["described"])]
    return lines * 3 + ours * 20 + [caption(random_label(rng), rng, full=0.5)[0] for _ in range(4000)]


def train_tokenizer(folder: Path, out: Path, *, seed: int) -> CLIPTokenizer:
    """Learn the merges and save `tokenizer/` in the files that `CLIPTokenizer.from_pretrained` reads."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES - 258, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(corpus(folder, seed), trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    # CLIP's order: bytes, bytes that end a word, merges, the two special tokens.
    entries = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    entries = [*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: i for i, entry in enumerate(entries)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[tuple(m) for m in merges], model_max_length=77)
    tokenizer.save_pretrained(out / "tokenizer")
    return tokenizer
