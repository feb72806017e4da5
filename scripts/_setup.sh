# shellcheck shell=bash
# Sourced by the other scripts: `idlm_setup EXTRAS` leaves a ready .venv in the root of the checkout
# and sets IDLM_ROOT and IDLM_PYTHON. A problem of the machine ends with one sentence and exit 2.
#
# Environment:
#   PYTHON            the interpreter to build on (3.10 or newer); default: the first that will do
#   IDLM_TORCH_INDEX  where torch comes from; default: on Linux without an NVIDIA GPU, and when pip
#                     has no index of its own configured, PyTorch's CPU index (0.2 GB instead of
#                     2.7 GB); empty: the package index, like everything else
#   PIP_*             as pip documents them

IDLM_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
IDLM_VENV="$IDLM_ROOT/.venv"
IDLM_PYTHON="$IDLM_VENV/bin/python"
_busy="$IDLM_VENV/.idlm-installing" # there while pip works: left behind, it means interrupted
_log="$IDLM_VENV/idlm-setup.log"

_cpu_index="https://download.pytorch.org/whl/cpu"
_gb_cpu=3    # .venv with a CPU build of torch, pip's downloads included
_gb_cuda=10  # the same with CUDA: 2.7 GB to download, kept by pip's cache, and twice that unpacked
_gb_update=1 # torch is there already

_say() { printf 'setup: %s\n' "$*" >&2; }

_die() {
    _say "$*"
    exit 2
}

# ---- the interpreter ------------------------------------------------------------------------

_version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

_new_enough() {
    local major minor
    IFS=. read -r major minor _ <<<"$1"
    [ "${major:-0}" -gt 3 ] || { [ "${major:-0}" -eq 3 ] && [ "${minor:-0}" -ge 10 ]; }
}

_find_python() {
    local candidate version seen=""
    if [ -n "${PYTHON:-}" ]; then
        version="$(_version_of "$PYTHON")" || _die "PYTHON=$PYTHON does not run; name a Python 3.10 or newer."
        _new_enough "$version" || _die "PYTHON=$PYTHON is Python $version; idlm needs 3.10 or newer."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
        version="$(_version_of "$candidate")" || continue
        if _new_enough "$version"; then
            printf '%s\n' "$candidate"
            return
        fi
        seen="${seen:-, and $candidate here is $version}"
    done
    _die "idlm needs Python 3.10 or newer${seen:-, and there is no python3 here}; install one, or name one with PYTHON=/path/to/python."
}

# ---- what is there already ------------------------------------------------------------------

# One line that changes with anything that decides what gets installed.
_fingerprint() {
    { cat "$IDLM_ROOT/pyproject.toml" "$IDLM_ROOT/constraints.txt" && printf '%s' "$IDLM_ROOT"; } | cksum
}

_stamp() { printf '%s/.idlm-ready-%s\n' "$IDLM_VENV" "${1:-base}"; }

# Whether .venv holds what EXTRAS asks for; any extras include the base.
_ready() {
    local stamp now
    [ -x "$IDLM_VENV/bin/idlm" ] && [ ! -e "$_busy" ] || return 1
    _version_of "$IDLM_PYTHON" >/dev/null || return 1
    now="$(_fingerprint)"
    for stamp in "$(_stamp "$1")" "$IDLM_VENV"/.idlm-ready-*; do
        if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ]; then return 0; fi
        [ -z "$1" ] || return 1
    done
    return 1
}

_need_disk() {
    local needed="$1" free
    free="$(df -Pk "$IDLM_ROOT" | awk 'NR == 2 { print $4 }')"
    [ "${free:-0}" -ge $((needed * 1000 * 1000)) ] ||
        _die "$IDLM_ROOT has $(awk -v k="${free:-0}" 'BEGIN { printf "%.1f", k / 1e6 }') GB free and the installation needs $needed GB; make room, or move the checkout to a larger disk."
}

# ---- pip ------------------------------------------------------------------------------------

# On a terminal, the last thing pip did, in place; elsewhere nothing.
_show_progress() {
    local line
    if [ ! -t 2 ]; then
        cat >/dev/null
        return
    fi
    while IFS= read -r line; do
        case "$line" in
            *Collecting* | *Downloading* | *Installing*) printf '\r\033[K  %.76s' "$line" >&2 ;;
        esac
    done
    printf '\r\033[K' >&2
}

# pip's output goes to the log, its exit status to the caller.
_pip() {
    local status=0
    PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$IDLM_PYTHON" -m pip "$@" 2>&1 | tee -a "$_log" | _show_progress || status="${PIPESTATUS[0]}"
    return "$status"
}

_explain_pip() {
    local network="NewConnectionError|NameResolutionError|Failed to establish a new connection|name resolution|Name or service not known|Network is unreachable|No route to host|Connection (refused|reset|aborted|timed out)|ConnectTimeout|[Rr]ead timed out|ProxyError|SSLError|Max retries exceeded|Could not fetch URL"
    rm -f "$_busy" # pip ended by itself and left the environment in order
    if grep -q "No space left on device" "$_log"; then
        _die "the disk, or the temporary folder ${TMPDIR:-/tmp}, filled up while pip was installing; make room (or set TMPDIR) and run again; pip's words are in $_log."
    elif grep -qE "$network" "$_log"; then
        _die "the package index could not be reached; check the network, the proxy or PIP_INDEX_URL and run again; pip's words are in $_log."
    fi
    _die "pip could not install idlm ($(grep -E '^ *ERROR' "$_log" | tail -n 1 || true)); pip's words are in $_log."
}

# ---- torch ----------------------------------------------------------------------------------

_has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

_has_torch() { compgen -G "$IDLM_VENV/lib/python3.*/site-packages/torch" >/dev/null; }

# The index torch is taken from; empty for the package index.
_torch_index() {
    if [ -n "${IDLM_TORCH_INDEX+set}" ]; then
        printf '%s\n' "$IDLM_TORCH_INDEX"
        return
    fi
    if [ "$(uname -s)" != Linux ] || _has_gpu; then return; fi
    case "$("$IDLM_PYTHON" -m pip config list 2>/dev/null)" in
        *index* | *find-links*) ;; # who configured a source knows which torch is to be had there
        *) printf '%s\n' "$_cpu_index" ;;
    esac
}

# Take torch from its own index where that saves gigabytes; otherwise pip finds it with the rest.
_install_torch() {
    local index
    index="$(_torch_index)"
    if [ -z "$index" ]; then return; fi
    # Alone and without its dependencies: nothing else is to come from that index.
    if _pip install --retries 1 --no-deps --index-url "$index" -c "$IDLM_ROOT/constraints.txt" torch; then
        return
    fi
    _say "no torch from $index; taking the package index's build, which on Linux brings CUDA along."
    rm -f "$_busy" # a full disk found here is not an interruption
    _need_disk "$_gb_cuda"
    : >"$_busy"
    : >"$_log"
}

# ---- the whole ------------------------------------------------------------------------------

_make_venv() {
    local python clear=""
    python="$(_find_python)" || exit 2
    if [ -e "$_busy" ]; then
        _say "the last installation was interrupted; starting .venv afresh."
        clear="--clear"
    elif [ -e "$IDLM_VENV" ] && ! _new_enough "$(_version_of "$IDLM_PYTHON")"; then
        _say "the Python in .venv does not run or is older than 3.10; starting .venv afresh."
        clear="--clear"
    elif [ -x "$IDLM_PYTHON" ] && "$IDLM_PYTHON" -m pip --version >/dev/null 2>&1; then
        return
    fi
    "$python" -m venv ${clear:+"$clear"} "$IDLM_VENV" >/dev/null 2>&1 ||
        _die "$python cannot make a virtual environment in $IDLM_VENV; on Debian and Ubuntu install python3-venv, elsewhere try \`$python -m venv $IDLM_VENV\` to see why."
}

_install() {
    local extras="$1" needed="$_gb_cpu"
    if _has_gpu; then needed="$_gb_cuda"; fi
    if _has_torch && [ ! -e "$_busy" ]; then needed="$_gb_update"; fi
    _need_disk "$needed"
    _make_venv
    _say "installing into $IDLM_VENV; minutes the first time, nothing after that."
    : >"$_log"
    : >"$_busy"
    # pip and setuptools first, and the build without isolation: exact versions there too.
    _pip install -c "$IDLM_ROOT/constraints.txt" pip setuptools || _explain_pip
    _has_torch || _install_torch
    _pip install --no-build-isolation -c "$IDLM_ROOT/constraints.txt" \
        -e "${IDLM_ROOT}${extras:+[$extras]}" || _explain_pip
    _fingerprint >"$(_stamp "$extras").new"
    mv "$(_stamp "$extras").new" "$(_stamp "$extras")"
    rm -f "$_busy"
    _say "ready."
}

# idlm_setup EXTRAS: make .venv hold idlm with EXTRAS ("" or names separated by commas).
idlm_setup() {
    if _ready "$1"; then return; fi
    trap '_say "interrupted; run again to go on."; exit 130' INT TERM
    # Two scripts at once: the second waits. The lock is on the checkout's folder, so that it
    # leaves no file behind, and is gone with the process.
    exec 9<"$IDLM_ROOT"
    if command -v flock >/dev/null 2>&1 && ! flock -n 9; then
        _say "another set-up is at work here; waiting for it."
        flock 9 || true
    fi
    if ! _ready "$1"; then _install "$1"; fi
    exec 9<&-
    trap - INT TERM
}
