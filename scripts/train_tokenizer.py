"""Train the byte-level BPE of the bundled models: python scripts/train_tokenizer.py OUT [SIZE]."""

from __future__ import annotations

import sys

from idlm.data import python_docs, train_bpe


def main() -> None:
    """Train on the training split of python_docs and write a Hugging Face tokenizer folder."""
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python scripts/train_tokenizer.py OUT [VOCAB_SIZE]")
    size = int(sys.argv[2]) if len(sys.argv) == 3 else 2048
    folder = train_bpe(python_docs.documents("train"), size, sys.argv[1])
    print(f"tokenizer of {size} tokens written to {folder} ({python_docs.fingerprint()})")


if __name__ == "__main__":
    main()
