#!/usr/bin/env bash
# The exact commands that made data/models: tokenizer, evaluator, teacher (two parts), student. Four
# to five hours on 2 cores, minutes on a GPU. Another CPython than 3.11.7 means another text, and
# floating point differs between machines: the models come out alike, not bit for bit the same.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

python scripts/train_tokenizer.py runs/python_docs_tokenizer 2048
# three parts: the learning rate of the first two had fallen before the model was good enough
log=runs/python_docs_evaluator/logs
idlm fit --config configs/python_docs_evaluator.yaml --model.init_args.max_updates 700 \
    --trainer.logger.init_args.version part1
idlm fit --config configs/python_docs_evaluator.yaml --model.init_args.max_updates 1500 \
    --trainer.logger.init_args.version part2 \
    --ckpt_path "$log/part1/checkpoints/epoch=0-step=700.ckpt"
idlm fit --config configs/python_docs_evaluator.yaml \
    --ckpt_path "$log/part2/checkpoints/epoch=0-step=1500.ckpt"
idlm fit --config configs/python_docs_teacher.yaml
idlm fit --config configs/python_docs_teacher_1024.yaml
idlm fit --config configs/python_docs_student.yaml
