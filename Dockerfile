# The image of Countersign: one binary and the C library that it needs, nothing else, as a user that is not root.
#
#   docker build -t countersign .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release --bin countersign
# What the binary loads, found by asking the loader; name resolution is inside libc since glibc 2.34.
RUN deploy/rootfs target/release/countersign /rootfs

FROM scratch
COPY --from=build /rootfs /
COPY --from=build --chown=65532:65532 /rootfs/run/countersign /run/countersign
COPY --from=build --chown=65532:65532 /rootfs/var/lib/countersign /var/lib/countersign
USER 65532:65532
ENTRYPOINT ["/countersign"]
CMD ["sidecar"]
