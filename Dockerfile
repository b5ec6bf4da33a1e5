# The daemon:            docker build -t kv-compressd .
# The command line:      docker build --target cli -t kv-compress .
# Both, with labels:     scripts/build_image.sh
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
WORKDIR /src
COPY scripts/install-deps.sh scripts/
RUN scripts/install-deps.sh --build
COPY . .
RUN scripts/build.sh && strip bin/kv-compressd bin/kv-compress
# A label that says another version than the program would be worse than none.
ARG VERSION=unknown
RUN test "$VERSION" = unknown || bin/kv-compressd --version | grep -q "^kv-compressd $VERSION "
# The images hold the packages that the programs need and no others.
RUN scripts/runtime_packages.sh bin/* > packages

FROM ${BASE} AS runtime
COPY --from=build /src/packages /tmp/
RUN apt-get -q update \
 && xargs apt-get -q install -y --no-install-recommends < /tmp/packages \
 && rm -rf /tmp/packages /var/lib/apt/lists/* /var/cache/apt/*
USER 10001:10001

FROM runtime AS cli
COPY --from=build /src/bin/kv-compress /usr/local/bin/
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kv-compress" \
      org.opencontainers.image.description="Compresses key/value caches of large language models: the command line" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
WORKDIR /data
ENTRYPOINT ["kv-compress"]

FROM runtime AS daemon
COPY --from=build /src/bin/kv-compressd /usr/local/bin/
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kv-compressd" \
      org.opencontainers.image.description="Compresses key/value caches of large language models: the gRPC daemon" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# The unix socket's folder is a volume: containers beside this one can mount it, and the daemon can write to it where the
# rest of the file system is read-only.
USER root
RUN install -d -o 10001 -g 10001 -m 0755 /run/kv-compressd
USER 10001:10001
VOLUME /run/kv-compressd
# Every flag --foo-bar of the daemon is also the variable KV_COMPRESSD_FOO_BAR. Plaintext is allowed, since whoever starts a
# container says who can reach its port; with KV_COMPRESSD_TLS_CERT and KV_COMPRESSD_TLS_KEY the port speaks TLS alone.
ENV KV_COMPRESSD_LISTEN=0.0.0.0:50051,unix:/run/kv-compressd/kv-compressd.sock \
    KV_COMPRESSD_METRICS_LISTEN=0.0.0.0:9464 \
    KV_COMPRESSD_ALLOW_PLAINTEXT=true
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["kv-compressd", "--healthcheck"]
ENTRYPOINT ["kv-compressd"]
