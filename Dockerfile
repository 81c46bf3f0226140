# Builds the same image as `make image`, with Docker or Podman:
#   docker build -t ghcr.io/csi-dmsnap/csi-dmsnap:v0.1.0 .
FROM golang:1.26-bookworm AS build
ARG TARGETARCH=amd64
WORKDIR /src
COPY . .
RUN make image-root ARCH=$TARGETARCH

FROM scratch
COPY --from=build /src/out/image/root/ /
ENV PATH=/usr/sbin:/usr/bin
ENTRYPOINT ["/usr/bin/csi-dmsnap"]
