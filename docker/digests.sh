#!/bin/sh
# Moves every image that we don't build, pinned as tag@sha256:…, to what its tag points to now. It asks the registry; if that
# fails, nothing is changed.
set -eu
cd "$(dirname "$0")/.."
files='Dockerfile docker-compose.yml docker-compose.ha.yml'

pinned=
for image in $(sed -nE 's/^(FROM|.* image:)( &[a-z]+)? ([a-z/]+:[a-z0-9.-]+).*/\3/p' $files | sort -u); do
  docker pull --quiet "$image" >/dev/null
  digest=$(docker image inspect --format '{{index .RepoDigests 0}}' "$image")
  pinned="$pinned s#$image(@sha256:[0-9a-f]+)?#$image@${digest#*@}#;"
  echo "$image@${digest#*@}"
done
sed -E -i "$pinned" $files
