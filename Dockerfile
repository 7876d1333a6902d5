# syntax=docker/dockerfile:1
# The image of the Helm chart: one binary on distroless, without a shell, run by uid 65532.
#
#     docker build --tag participant-gateway .
#
# A release pins both bases by what its registry says today, which is the builder's to look up and to record:
#
#     docker build --build-arg RUST_DIGEST=sha256:… --build-arg BASE_DIGEST=sha256:… …
#
# The digests are empty here, for a trial: one that is written down is out of date with the next security fix of its base.
# Both bases are Debian 12, so that the binary finds the glibc that it was linked against.
ARG RUST_TAG=1.95-slim-bookworm
ARG RUST_DIGEST=
ARG BASE_TAG=nonroot
ARG BASE_DIGEST=

FROM rust:${RUST_TAG}${RUST_DIGEST:+@${RUST_DIGEST}} AS build
WORKDIR /build
# A layer with every dependency, which only the manifests change. It is a layer and no cache mount, because a registry keeps
# layers for the next machine of CI. What it builds of the crate itself has to go: copied files keep their times, so cargo would
# take the empty crate for newer than they are.
COPY Cargo.toml Cargo.lock ./
COPY benches benches
RUN mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cp src/main.rs build.rs \
    && cargo build --release --locked \
    && cargo clean --release --locked --package participant-gateway \
    && rm -r src build.rs
COPY build.rs ./
COPY proto proto
COPY src src
RUN cargo build --release --locked

FROM gcr.io/distroless/cc-debian12:${BASE_TAG}${BASE_DIGEST:+@${BASE_DIGEST}}
COPY --from=build /build/target/release/participant-gateway /usr/local/bin/participant-gateway
# By number: Kubernetes can tell from it that the user is not root.
USER 65532:65532
# gRPC, admin, events.
EXPOSE 50051 9464 8080
# No HEALTHCHECK: Kubernetes ignores it and asks the health protocol itself; elsewhere `participant-gateway probe` tells.
ENTRYPOINT ["/usr/local/bin/participant-gateway"]
