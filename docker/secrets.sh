#!/bin/sh
# Creates what docker-compose.yml needs, unless it exists: the files in secrets/, and .env.
set -eu
cd "$(dirname "$0")/.."

# The folder is closed to other users. The files are readable, since each container's own user must read them.
mkdir -p secrets
chmod 700 secrets
umask 022

keep() {
  # If the file is missing, compose creates a folder in its place.
  rmdir "secrets/$1" 2>/dev/null || true
  test -s "secrets/$1" || printf '%s' "$2" >"secrets/$1"
}

random() {
  head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'
}

keep secret_key "$(random)"
keep postgres_password "$(random)"
keep database_url "postgresql://signup:$(cat secrets/postgres_password)@postgres/signup"
keep metrics_token "$(random)"
# Empty until you write the password into it.
keep mail_password ""
touch .env

# `flask mail doctor` prints commands that work here: those of docker-compose, unless Docker has compose itself.
if ! docker compose version >/dev/null 2>&1 && command -v docker-compose >/dev/null &&
  ! grep -q '^COMPOSE_COMMAND=' .env; then
  echo COMPOSE_COMMAND=docker-compose >>.env
fi
