#!/usr/bin/env bash
# Everything that has to be seen on a GPU, in one command: benchmarks/gpu.py, in an environment of its own.
#
#   bash benchmarks/gpu.sh [options of gpu.py]
#
# PYTHON       a Python with a torch for this machine's GPU, whose packages are used    (default: python3)
# WHEELS       a folder of wheels for what that Python lacks, where no package index can be reached
# ENVIRONMENT  where what is lacking goes                                               (default: .venv-gpu)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
environment=${ENVIRONMENT:-.venv-gpu}
if [ ! -e "$environment/.installed" ]; then
    "$python" -m venv "$environment"
    place='import site; print(site.getsitepackages()[0])'
    # over the other one, which may be an environment itself
    echo "import site; site.addsitedir('$("$python" -c "$place")')" > "$("$environment/bin/python" -c "$place")/other.pth"
    from=()
    if [ -n "${WHEELS:-}" ]; then from=(--no-index --find-links "$WHEELS" --no-build-isolation); fi
    "$environment/bin/pip" install --quiet "${from[@]}" --editable ".[train,benchmarks]" pytest
    touch "$environment/.installed"
fi
exec "$environment/bin/python" benchmarks/gpu.py "$@"
