#!/bin/sh
# Dumps the database into /backups every BACKUP_SECONDS, and keeps the newest BACKUP_KEEP dumps.
# `backup.sh once` makes a dump now, `latest` prints the newest dump, `check` fails if that is older than twice
# BACKUP_SECONDS, and `restore FILE` (or `restore latest`) replaces everything in the database: stop web and workers first.
set -eu
PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
export PGPASSWORD PGDATABASE="${PGDATABASE:-$PGUSER}"
seconds=${BACKUP_SECONDS:-86400} keep=${BACKUP_KEEP:-7}
cd "${BACKUPS:-/backups}"
umask 077

# Our own dumps, newest first: their names are their times. Other files there are left alone.
dumps() {
  find . -maxdepth 1 -name '[0-9]*T[0-9]*Z.dump' "$@" | sort -r
}

is_there_since() {
  test -n "$(dumps -newermt "@$(($(date +%s) - $1))")"
}

dump() {
  # Left behind by a dump that was interrupted.
  find . -maxdepth 1 -name '[0-9]*T[0-9]*Z.dump.part' -mmin +1440 -exec rm -f {} +
  name=$(date -u +%Y-%m-%dT%H%M%SZ).dump
  # A dump gets its final name only once it is complete and can be read back.
  if ! pg_dump --format=custom --file="$name.part" || ! pg_restore --file=/dev/null "$name.part"; then
    rm -f "$name.part"
    return 1
  fi
  mv "$name.part" "$name"
  echo "dumped $PGDATABASE to $name"
  dumps | tail -n "+$((keep + 1))" | xargs -r rm --
}

case ${1:-schedule} in
  schedule)
    # A restart makes no dump before one is due, and a failed dump is retried soon.
    while :; do
      is_there_since "$seconds" || dump || echo "no dump was made" >&2
      sleep 30
    done
    ;;
  once) dump ;;
  latest) cat "$(dumps | head -n 1)" ;;
  check) is_there_since $((2 * seconds)) ;;
  restore)
    file=${2:?which one? see ls /backups}
    test "$file" != latest || file=$(dumps | head -n 1)
    pg_restore --dbname="$PGDATABASE" --clean --if-exists --no-owner --exit-on-error --single-transaction "$file"
    echo "restored $file"
    ;;
  *) echo "backup.sh knows once, latest, check and restore, not $1" >&2; exit 2 ;;
esac
