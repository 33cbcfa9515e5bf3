#!/usr/bin/env bash
# Fetches into .fetched/ the packages that recipes read but pip does not install: archives whose tests or models are
# the data here. The recipes hold every file they take against its SHA-256.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p .fetched
cd .fetched
python3 -m pip download --quiet --no-deps --no-binary :all: ocrmypdf==16.10.4 face_recognition==1.3.0
npm pack --silent @vladmandic/face-api@1.7.15
