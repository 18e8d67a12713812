//! What is asked through the proxies: the shapes of the load. Pure.

use super::load::client::Protocol;

/// A load, the same for every proxy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// What it is, in the results.
    pub(crate) title: &'static str,
    pub(crate) mesh: Mesh,
    pub(crate) protocol: Protocol,
    /// Connections, or tunnels.
    pub(crate) connections: usize,
    /// Streams of each tunnel.
    pub(crate) streams: usize,
    /// Requests at once on each connection or stream.
    pub(crate) calls: usize,
    /// Bytes of each request's body.
    pub(crate) request: Option<usize>,
    /// Bytes of each answer's body.
    pub(crate) answer: usize,
    /// Requests per second, if not as many as can be.
    pub(crate) rate: Option<u32>,
    /// Whether it has precedence over all other programs of the machine.
    pub(crate) preferred: bool,
    /// Of those, how many are due at the same moment.
    pub(crate) burst: u32,
    /// The share of the other proxy's processor time that we had set ourselves.
    pub(crate) aim: Option<f64>,
}

/// What is around the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mesh {
    /// Mutual TLS and CONNECT on both sides of both proxies.
    Hbone,
    /// Nothing on either side of either proxy. Ours is another process then: see `plain`.
    Plain,
}

const PLAIN: Shape = Shape {
    name: "http1-32",
    title: "HTTP/1.1, 32 connections",
    mesh: Mesh::Plain,
    protocol: Protocol::Http1,
    connections: 32,
    streams: 1,
    calls: 1,
    request: None,
    answer: 100,
    rate: None,
    preferred: false,
    burst: 1,
    aim: None,
};

/// What most of the other figures are taken in.
pub(crate) const HBONE: Shape = Shape {
    name: "hbone-2x16",
    title: "HBONE, 2 tunnels of 16 streams",
    mesh: Mesh::Hbone,
    connections: 2,
    streams: 16,
    ..PLAIN
};

/// Every shape, in the order of the tables.
pub(crate) const SHAPES: [Shape; 18] = [
    Shape { aim: Some(0.4), ..PLAIN },
    Shape {
        name: "http1-32-post",
        title: "HTTP/1.1, 32 connections, requests of 4 KiB",
        request: Some(4 << 10),
        ..PLAIN
    },
    Shape {
        name: "http1-32-4k",
        title: "HTTP/1.1, 32 connections, answers of 4 KiB",
        answer: 4 << 10,
        ..PLAIN
    },
    Shape {
        name: "http1-32-64k",
        title: "HTTP/1.1, 32 connections, answers of 64 KiB",
        answer: 64 << 10,
        ..PLAIN
    },
    Shape {
        name: "http1-rate",
        title: "HTTP/1.1, 32 connections, 4,000 requests/s",
        rate: Some(4000),
        ..PLAIN
    },
    Shape {
        name: "h2-32x1",
        title: "HTTP/2, 32 connections of 1 stream",
        protocol: Protocol::Http2,
        aim: Some(0.5),
        ..PLAIN
    },
    Shape {
        name: "h2-4x32",
        title: "HTTP/2, 4 connections of 32 streams",
        protocol: Protocol::Http2,
        connections: 4,
        calls: 32,
        aim: Some(0.5),
        ..PLAIN
    },
    Shape {
        name: "grpc-4x32",
        title: "gRPC, 4 connections of 32 calls",
        protocol: Protocol::Grpc,
        connections: 4,
        calls: 32,
        aim: Some(0.5),
        ..PLAIN
    },
    Shape {
        name: "grpc-rate",
        title: "gRPC, 4 connections, 4,000 calls/s",
        protocol: Protocol::Grpc,
        connections: 4,
        calls: 32,
        rate: Some(4000),
        ..PLAIN
    },
    Shape { aim: Some(0.3), ..HBONE },
    Shape {
        name: "hbone-32x1",
        title: "HBONE, 32 tunnels of 1 stream",
        connections: 32,
        streams: 1,
        ..HBONE
    },
    Shape {
        name: "hbone-rate",
        title: "HBONE, 2 tunnels of 16 streams, 4,000 requests/s",
        rate: Some(4000),
        aim: Some(0.3),
        ..HBONE
    },
    Shape {
        name: "hbone-bursts",
        title: "HBONE, 2 tunnels of 16 streams, 4 requests at each millisecond",
        rate: Some(4000),
        burst: 4,
        aim: Some(0.3),
        ..HBONE
    },
    Shape {
        name: "hbone-2x16-post",
        title: "HBONE, 2 tunnels of 16 streams, requests of 4 KiB",
        request: Some(4 << 10),
        ..HBONE
    },
    Shape {
        name: "hbone-2x16-4k",
        title: "HBONE, 2 tunnels of 16 streams, answers of 4 KiB",
        answer: 4 << 10,
        ..HBONE
    },
    Shape {
        name: "hbone-2x16-64k",
        title: "HBONE, 2 tunnels of 16 streams, answers of 64 KiB",
        answer: 64 << 10,
        ..HBONE
    },
    Shape {
        name: "hbone-grpc",
        title: "HBONE, gRPC, 2 tunnels of 1 connection of 16 calls",
        protocol: Protocol::Grpc,
        streams: 1,
        calls: 16,
        ..HBONE
    },
    Shape {
        name: "hbone-grpc-rate",
        title: "HBONE, gRPC, 2 tunnels, 4,000 calls/s",
        protocol: Protocol::Grpc,
        streams: 1,
        calls: 16,
        rate: Some(4000),
        ..HBONE
    },
];
