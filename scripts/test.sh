#!/usr/bin/env bash
# Set up once, then lint, types and tests. With arguments: only pytest, with those arguments
# (paths are relative to the root of the checkout).
set -euo pipefail
# shellcheck source=scripts/_setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

idlm_setup test
cd "$IDLM_ROOT"
if [ "$#" -eq 0 ]; then
    "$IDLM_PYTHON" -m ruff check .
    "$IDLM_PYTHON" -m ruff format --check .
    "$IDLM_PYTHON" -m mypy idlm
fi
exec "$IDLM_PYTHON" -m pytest "$@"
