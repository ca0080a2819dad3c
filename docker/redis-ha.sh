#!/bin/sh
# Starts a Redis server or a sentinel: `redis-ha.sh server|sentinel NET ADDRESS`, in the network NET.0/24.
# The first start writes the configuration into /data, where sentinels then record which server replicates which.
set -eu
kind=$1 net=$2 address=$3
file=/data/ha.conf

if [ ! -f "$file" ]; then
  case $kind in
    sentinel)
      printf '%s\n' \
        "sentinel monitor signup $net.11 6379 2" \
        'sentinel down-after-milliseconds signup 3000' \
        'sentinel failover-timeout signup 20000'
      ;;
    server)
      printf '%s\n' 'appendonly yes' 'maxmemory 256mb' 'maxmemory-policy noeviction'
      [ "$address" = 11 ] || echo "replicaof $net.11 6379"
      ;;
  esac >"$file.new"
  mv "$file.new" "$file"
fi

case $kind in
  # Listens only on the network of these servers, and locally.
  sentinel) exec redis-server "$file" --port 26379 --bind "$net.$address" 127.0.0.1 --dir /data --sentinel ;;
  server) exec redis-server "$file" --bind "$net.$address" 127.0.0.1 --dir /data ;;
esac
