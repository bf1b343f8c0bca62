#!/usr/bin/env bash
# Make the virtual environment FOLDER with exactly what requirements.lock names.
#   .ci/setup/venv.sh FOLDER        PYTHON=python3.12 chooses the interpreter
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?usage: .ci/setup/venv.sh FOLDER}

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
has_venv() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

find_python() {
    local candidate without_venv=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        supported "$candidate" || continue
        if has_venv "$candidate"; then
            echo "$candidate"
            return
        fi
        without_venv=${without_venv:-$candidate}
    done
    if [ -z "$without_venv" ]; then
        echo "setup: no Python 3.10 to 3.13 found (tried ${PYTHON:-python3, python3.13 … python3.10}):" \
            "install one, or name it: make setup PYTHON=/path/to/python3" >&2
        return 1
    fi
    # Debian and Ubuntu keep venv and ensurepip in a package of their own.
    local version
    version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    .ci/setup/packages.sh "python$version-venv" >&2
    echo "$without_venv"
}

if ! { supported "$folder/bin/python" && "$folder/bin/python" -m pip --version >/dev/null; }; then
    python=$(find_python)
    "$python" -m venv --clear "$folder"
fi
echo "setup: $("$folder/bin/python" --version) in $folder"
echo "setup: installing the packages of requirements.lock (about 400 MB to download the first time)"
install=("$folder/bin/python" -m pip --quiet --quiet --disable-pip-version-check install)
"${install[@]}" --requirement requirements.lock
"${install[@]}" --no-deps --no-build-isolation --editable .
