#!/usr/bin/env bash
# The Debian packages of the libraries that these programs link, one a line.
# usage: runtime_packages.sh PROGRAM...
set -euo pipefail

ldd "$@" | awk '$3 ~ "^/" {print $3}' | sort -u | xargs realpath | sed 's,^/usr/,*/,' | xargs dpkg-query -S | cut -d: -f1 | sort -u
