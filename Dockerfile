# One image for web, worker and the flask command. Build tools stay in the first stage.

FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
COPY requirements.txt /
# Most of a signup's work is argon2, whose wheel is built for any x86-64. If all your machines have AVX2, build it for that
# with docker build --build-arg MARCH=x86-64-v3; on other machines, that image fails with "illegal instruction".
ARG MARCH=""
# Debian doesn't keep old compiler packages, so their version can't be pinned.
# hadolint ignore=DL3008
RUN if [ -n "$MARCH" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
      export CFLAGS="-O3 -march=$MARCH"; \
    fi && \
    /venv/bin/pip install --require-hashes ${MARCH:+--no-binary argon2-cffi-bindings} --requirement /requirements.txt

# The proxy in front, on the same base image, so that there is only one to keep up to date.
FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS proxy
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends nginx-light && rm -rf /var/lib/apt/lists/*
COPY docker/nginx.conf /etc/nginx/nginx.conf
USER 33:33
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
CMD ["nginx", "-e", "stderr", "-g", "daemon off;"]

FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TZ=UTC
WORKDIR /app
COPY --from=build /venv /venv
COPY gunicorn.conf.py huey_worker.py wsgi.py ./
COPY migrations migrations
COPY own own
COPY instance instance
COPY webapp webapp
# Which release this is: docker build --build-arg VERSION="$(git describe --always --dirty)" .
ARG VERSION=""
ENV APP_VERSION=$VERSION
# An unnamed user, who can write nowhere else. With SQLite, mount a volume here.
RUN install --directory --owner=10001 --group=10001 instance
USER 10001:10001
# Platforms set their own. Gunicorn listens on it by default.
ENV PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/readyz', timeout=4)"]
CMD ["gunicorn", "wsgi:app"]
