#!/usr/bin/env bash
# Set up once, then tell the whole story on this machine; arguments go to `idlm quickstart`.
set -euo pipefail
# shellcheck source=scripts/_setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"

idlm_setup ""
exec "$IDLM_VENV/bin/idlm" quickstart "$@"
