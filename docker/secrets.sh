#!/bin/sh
# Makes what docker-compose.yml needs and is not there yet: the files in secrets/, and an empty .env.
set -eu
cd "$(dirname "$0")/.."

# The folder is closed to others; the files are not, since each container's own user reads them.
mkdir -p secrets
chmod 700 secrets
umask 022

keep() {
  # Compose makes a folder of a file that is missing.
  rmdir "secrets/$1" 2>/dev/null || true
  test -s "secrets/$1" || printf '%s' "$2" >"secrets/$1"
}

random() {
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'
}

keep secret_key "$(random)"
keep postgres_password "$(random)"
keep database_url "postgresql://signup:$(cat secrets/postgres_password)@postgres/signup"
touch .env
